"""What requests may say, checked: a field that is not here is refused by its name, and so is a value of another type.

Ranges are not repeated here: `Sampling` and `Options` know them, and say the same to every caller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from glassformer.errors import RequestError
from glassformer.generate.sampling import Sampling
from glassformer.inspect.edits.edit import Op
from glassformer.inspect.views.layer import AttentionKind
from glassformer.server.errors import ApiError
from glassformer.server.models import ServedModel

# What others offer and this server does not; a value that asks for nothing is no reason to refuse.
NOTHING: dict[str, tuple[Any, ...]] = {
    "audio": (), "best_of": (1,), "function_call": ("none",), "functions": ([],), "metadata": ({},),
    "modalities": (["text"],), "moderation": (), "parallel_tool_calls": (), "prediction": (),
    "prompt_cache_key": (), "prompt_cache_options": (), "prompt_cache_retention": (), "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},), "safety_identifier": (), "service_tier": ("auto", "default"),
    "store": (False,), "suffix": ("",), "tool_choice": ("none",), "tools": ([],), "user": (), "verbosity": (),
    "web_search_options": (),
}  # fmt: skip


FIRST = Field(fail_fast=True)  # of a list's wrong items only the first is told
Ids = Annotated[list[int], FIRST]
MOST_PROMPTS = 128  # texts of one request, continuations counted: bounds what waits for an answer


class Body(BaseModel):
    """A request's JSON object."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for name in data:
                if name not in cls.model_fields and name not in NOTHING:
                    known = ", ".join(cls.model_fields)
                    raise RequestError(f"unknown field {str(name)[:100]!r}; known: {known}", param=str(name)[:100])
        return data


Number = float | Literal["NaN", "Infinity", "-Infinity"]
Places = int | Ids | None


class EditBody(Body):
    """A change to what flows through the model: see `glassformer/inspect/edit.py`. What is not named is all of it."""

    op: Op = Field(description="What is done.", examples=["ablate"])
    point: str = Field(description="Where.", examples=["blocks.0.attn.z"])
    head: Places = None
    position: Places = Field(None, description="-1: each token from which a new one is written.")
    query: Places = Field(None, description="Of scores and probs, as position.")
    key: Places = Field(None, description="Of scores and probs.")
    dim: Places = None
    row: int | None = Field(None, description="Of several continuations, which.")
    factor: Number | None = Field(None, description="Of scale and add.")
    value: Number | None = Field(None, description="Of replace and add: one number ...")
    vector: str | None = Field(None, description="... or many, by the name that /v1/vectors gave them.")
    from_trace: str | None = Field(None, description="Of patch: the id of the trace to take from.")


class SamplingFields(Body):
    """How tokens are chosen: the fields of `Sampling`, as OpenAI and others spell them."""

    temperature: float | None = Field(
        None, description="0 takes the likeliest token, always. Default 1.", examples=[0.7]
    )
    top_p: float | None = Field(None, description="Only the smallest set of tokens whose probabilities reach p.")
    top_k: int | None = Field(None, description="Only the k likeliest tokens.")
    min_p: float | None = Field(None, description="Only tokens at least p times as likely as the likeliest.")
    repetition_penalty: float | None = Field(None, description="Divides logits of tokens that were there. Default 1.")
    presence_penalty: float | None = Field(None, description="Taken off the logit of a token that was written.")
    frequency_penalty: float | None = Field(None, description="The same, for each time that it was written.")
    logit_bias: dict[str, float] | None = Field(
        None, description="Added to logits, by token id.", examples=[{"50": -9}]
    )
    seed: int | None = Field(None, description="The same seed gives the same text; the answer says which it was.")
    stop: str | Annotated[list[str], FIRST] | None = Field(None, description="End before this text, or these.")
    edits: Annotated[list[EditBody], FIRST] | None = Field(
        None,
        description="Changes to what flows through the model, as in `lm.generate(edit=[...])`.",
        examples=[[{"op": "ablate", "point": "blocks.0.attn.z", "head": 3}]],
    )

    def sampling(self) -> dict[str, Any]:
        """The fields of `Sampling` that were given, checked.

        At temperature 0 the others fall away, for they hold anyway: the likeliest token is within every top_p, top_k
        and min_p, and any seed gives the same text.
        """
        names = (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        )
        given = {name: value for name in (*names, "seed") if (value := getattr(self, name)) is not None}
        if self.logit_bias:
            given["logit_bias"] = {_token(key): value for key, value in self.logit_bias.items()}
        others: dict[str, Any] = {**given, "temperature": 1.0}
        checked = Sampling(**others)
        if given.get("temperature") == 0:
            given = {name: value for name, value in given.items() if name not in ("top_p", "top_k", "min_p", "seed")}
        else:
            given["seed"] = checked.seeded().seed
            replace(checked, temperature=given.get("temperature", 1.0))
        return given

    def changes(self) -> list[dict[str, Any]]:
        """The edits as plain JSON values."""
        return [one.model_dump(exclude_none=True) for one in self.edits or ()]

    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def _token(key: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", key):
        raise RequestError(f"logit_bias must map token ids to numbers, got the id {key[:50]!r}", param="logit_bias")
    return int(key)


class StreamOptions(Body):
    include_usage: bool = Field(False, description="End the stream with a chunk that counts tokens.")


class OpenAIFields(SamplingFields):
    """What completions and chats share."""

    model: str = Field(description="The name of a served model.", examples=["stories"])
    n: int | None = Field(None, description="This many continuations, of seeds one after the other.")
    stream: bool | None = Field(None, description="Server-sent events, one for each piece of text; then [DONE].")
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_asks_for_nothing(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        kept = {}
        for name, value in data.items():
            if name in NOTHING and name not in cls.model_fields:
                if value is not None and value not in NOTHING[name]:
                    raise ApiError(400, f"{name} is not served here", param=name, code="not_served")
            else:
                kept[name] = value
        return kept

    def check_stream(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options has no effect without stream: true", param="stream_options")


class CompletionBody(OpenAIFields):
    """A text, or texts, to continue."""

    prompt: str | Annotated[list[str], FIRST] | Ids | Annotated[list[Ids], FIRST] = Field(
        description="A text, token ids, or several of either. Text never becomes a control token.",
        examples=["One day Mia"],
    )
    max_tokens: int | None = Field(
        None, description="At most so many tokens; by default until the model ends the text or its context is full."
    )
    echo: bool | None = Field(None, description="Begin the answer with the prompt; with logprobs, its tokens too.")
    logprobs: int | None = Field(
        None, description="Log-probabilities (nats, of the model's own distribution), and so many likeliest tokens."
    )

    def prompts(self) -> list[str | list[int]]:
        """One or several, each a text or ids."""
        given = self.prompt
        several = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
        found: list[Any] = list(given) if several else [given]
        if len(found) * (self.n or 1) > MOST_PROMPTS:
            raise RequestError(
                f"prompts times n must be at most {MOST_PROMPTS}, got {len(found)} × {self.n or 1}", param="prompt"
            )
        return found


class TextPart(Body):
    type: Literal["text"]
    text: str


class MessageBody(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], FIRST]
    name: str | None = None

    def plain(self) -> dict[str, Any]:
        """As a chat template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text} | ({} if self.name is None else {"name": self.name})


Messages = Annotated[list[MessageBody], Field(min_length=1), FIRST]


class ChatBody(OpenAIFields):
    """A conversation to answer in."""

    messages: Messages = Field(examples=[[{"role": "user", "content": "Where is Mia?"}]])
    max_completion_tokens: int | None = Field(None, description="At most so many tokens, by default all that fit.")
    max_tokens: int | None = Field(None, description="The same by its old name; not both.")
    logprobs: bool | None = Field(None, description="Log-probabilities of the tokens written.")
    top_logprobs: int | None = Field(None, description="With logprobs: so many of the likeliest tokens, too.")

    def limit(self) -> tuple[str, int | None]:
        """How many tokens, and the name under which that was said."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise RequestError("give max_completion_tokens or max_tokens, not both", param="max_tokens")
        if self.max_tokens is not None:
            return "max_tokens", self.max_tokens
        return "max_completion_tokens", self.max_completion_tokens

    def top(self) -> int | None:
        """How many of the likeliest tokens; None: no log-probabilities."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class TraceBody(SamplingFields):
    """A text to trace: as it is, or continued first."""

    model: str = Field(description="The name of a served model.", examples=["stories"])
    prompt: str | Ids | None = Field(None, description="A text, or token ids.", examples=["One day Mia got a key."])
    target: str | Ids | None = Field(
        None, description="Of a model that reads a source, which the prompt is: what was written; None: what it writes."
    )
    messages: Messages | None = Field(None, description="A conversation instead of a prompt.")
    max_tokens: int = Field(
        0,
        description="First write so many tokens more; 0 traces the prompt alone. Of a model that reads a source: at "
        "most so many of the target; 0: until it ends.",
    )
    read: Annotated[list[str], FIRST] | None = Field(
        None,
        description="Points, or patterns of them, to keep as they pass; all else is computed when it is asked for.",
        examples=[["blocks.0.attn.*"]],
    )
    top: int = Field(5, description="With stream: so many of the likeliest tokens beside each one written.")
    stream: bool | None = Field(None, description="Events: `token` for each token written, then `trace`, or `error`.")

    def ids(self, served: ServedModel) -> list[int]:
        """What is to be traced, as token ids."""
        if self.target is not None:
            raise RequestError("target is of models that read a source, and this one reads none", param="target")
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("give either a prompt or messages", param="prompt")
        if self.messages is not None:
            return served.chat_ids([message.plain() for message in self.messages])
        return served.writer.encode(self.prompt or "")

    def reading(self, served: ServedModel) -> tuple[str | list[int], dict[str, Any]]:
        """What a model that is no decoder reads, and how. RequestError for a field that has no effect on it."""
        writes, given = served.kind != "encoder", self.model_dump(exclude_none=True)
        useful = {"model", "prompt", "read", "stream", "edits"} | ({"target", "max_tokens"} if writes else set())
        nothing = {"temperature": 0, "max_tokens": 0, "top": type(self).model_fields["top"].default}
        for name, value in given.items():
            if name not in useful and (name not in nothing or value != nothing[name]):
                why = "it takes the likeliest token, always" if writes else "it writes nothing"
                raise RequestError(f"{name} has no effect on a model of the kind {served.kind}: {why}", param=name)
        if self.prompt is None:
            raise RequestError("give a prompt: the text to read", param="prompt")
        options: dict[str, Any] = {"read": self.read or ()}
        if writes:
            options |= {"target": self.target, "max_tokens": self.max_tokens or None}
        return self.prompt, options

    def writing(self) -> dict[str, Any]:
        """Sampling and stops; where nothing is written, only what was given: it is refused then, by its name."""
        if self.max_tokens:
            return self.sampling() | {"stop": self.stops()}
        return self.model_dump(exclude_none=True, include=set(SamplingFields.model_fields) - {"edits"})


class VectorBody(Body):
    """Numbers to name in edits."""

    values: Annotated[list[float], Field(min_length=1), FIRST] = Field(examples=[[0.5, -1.0]])


class SweepBody(Body):
    """An edit in one place after the other, and what each changes."""

    trace: str = Field(description="The id of the trace whose text is read under the edits.")
    over: str = Field(description="What is gone through.", examples=["heads", "layers", "positions", "cells"])
    op: str = Field("ablate", description="What is done in each place: ablate, scale, patch, or of cells knockout.")
    attention: AttentionKind = Field(
        "attn", description="Of a model that reads a source: its encoder, or cross, what is between the two."
    )
    target: str | int | None = Field(None, description="The token whose logit is watched; without it, the KL is.")
    rival: str | int | None = Field(None, description="The token whose logit is taken off that.")
    position: int | None = Field(
        None, description="Where the logits are read, by default at the end. Of an encoder, without it, target and "
        "rival, it is the text's vector that is measured.",
    )  # fmt: skip
    source: str | None = Field(None, description="Of a patch: the id of the trace to take from.")
    point: str | None = Field(None, description="Another end of a point to do it at.", examples=["mlp.act"])
    factor: float | None = Field(None, description="Of scale: what is multiplied by.")
