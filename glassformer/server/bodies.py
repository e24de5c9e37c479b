"""The JSON bodies of requests. Unknown fields and values of a wrong type are rejected with an error that names them.

Ranges are checked by `Sampling` and `GenerationRequest`, with the same messages for every caller.
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

# Fields of OpenAI's API that this server does not support, with the values that have no effect and are accepted.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (), "best_of": (1,), "function_call": ("none",), "functions": ([],), "metadata": ({},),
    "modalities": (["text"],), "moderation": (), "parallel_tool_calls": (), "prediction": (),
    "prompt_cache_key": (), "prompt_cache_options": (), "prompt_cache_retention": (), "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},), "safety_identifier": (), "service_tier": ("auto", "default"),
    "store": (False,), "suffix": ("",), "tool_choice": ("none",), "tools": ([],), "user": (), "verbosity": (),
    "web_search_options": (),
}  # fmt: skip


FAIL_FAST = Field(fail_fast=True)  # report only the first wrong item of a list
Ids = Annotated[list[int], FAIL_FAST]
MAX_PROMPTS = 128  # texts of one request, continuations included


class Body(BaseModel):
    """A request's JSON object."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _check_field_names(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for name in data:
                if name not in cls.model_fields and name not in UNSUPPORTED:
                    known = ", ".join(cls.model_fields)
                    raise RequestError(f"unknown field {str(name)[:100]!r}; known: {known}", param=str(name)[:100])
        return data


Number = float | Literal["NaN", "Infinity", "-Infinity"]
Indices = int | Ids | None


class EditBody(Body):
    """A change to a value inside the model: see `inspect/edits/edit.py`. An index that is left out means all."""

    op: Op = Field(description="The operation.", examples=["ablate"])
    point: str = Field(description="The tap point.", examples=["blocks.0.attn.z"])
    head: Indices = None
    position: Indices = Field(
        None, description="-1: the last position of each forward pass, from which a token is generated."
    )
    query: Indices = Field(None, description="For scores and probs: the query position.")
    key: Indices = Field(None, description="For scores and probs: the key position.")
    dim: Indices = None
    row: int | None = Field(None, description="The index of a continuation.")
    factor: Number | None = Field(None, description="For scale and add.")
    value: Number | None = Field(None, description="For replace and add: one number ...")
    vector: str | None = Field(None, description="... or a vector, by the name that POST /v1/vectors returned.")
    from_trace: str | None = Field(None, description="For patch: the id of the trace to copy from.")


class SamplingFields(Body):
    """The fields of `Sampling`, under the names that OpenAI and others use."""

    temperature: float | None = Field(
        None, description="0 always takes the most probable token. Default 1.", examples=[0.7]
    )
    top_p: float | None = Field(
        None, description="Sample from the smallest set of tokens whose probabilities sum to p."
    )
    top_k: int | None = Field(None, description="Sample from the k most probable tokens.")
    min_p: float | None = Field(
        None, description="Sample from tokens at least p times as probable as the most probable one."
    )
    repetition_penalty: float | None = Field(None, description="Divides the logits of tokens that occurred. Default 1.")
    presence_penalty: float | None = Field(
        None, description="Subtracted from the logits of tokens that were generated."
    )
    frequency_penalty: float | None = Field(
        None, description="Subtracted once for each time that the token was generated."
    )
    logit_bias: dict[str, float] | None = Field(
        None, description="Added to logits, by token id.", examples=[{"50": -9}]
    )
    seed: int | None = Field(None, description="The same seed gives the same text. The response returns the seed.")
    stop: str | Annotated[list[str], FAIL_FAST] | None = Field(
        None, description="Stop before this text, or any of these texts."
    )
    edits: Annotated[list[EditBody], FAIL_FAST] | None = Field(
        None,
        description="Changes to values inside the model, as in `lm.generate(edit=[...])`.",
        examples=[[{"op": "ablate", "point": "blocks.0.attn.z", "head": 3}]],
    )

    def sampling(self) -> dict[str, Any]:
        """Return the given fields of `Sampling`, checked.

        At temperature 0, top_p, top_k, min_p and seed have no effect and are dropped.
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
            given["logit_bias"] = {_token_id(key): value for key, value in self.logit_bias.items()}
        values: dict[str, Any] = {**given, "temperature": 1.0}
        checked = Sampling(**values)
        if given.get("temperature") == 0:
            given = {name: value for name, value in given.items() if name not in ("top_p", "top_k", "min_p", "seed")}
        else:
            given["seed"] = checked.seeded().seed
            replace(checked, temperature=given.get("temperature", 1.0))
        return given

    def edit_dicts(self) -> list[dict[str, Any]]:
        """Return the edits as JSON values."""
        return [one.model_dump(exclude_none=True) for one in self.edits or ()]

    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def _token_id(key: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", key):
        raise RequestError(f"logit_bias must map token ids to numbers, got the id {key[:50]!r}", param="logit_bias")
    return int(key)


class StreamOptions(Body):
    include_usage: bool = Field(False, description="End the stream with a chunk that holds the token counts.")


class OpenAIFields(SamplingFields):
    """The fields that completions and chat completions share."""

    model: str = Field(description="The name of a served model.", examples=["stories"])
    n: int | None = Field(None, description="The number of continuations. Their seeds are consecutive.")
    stream: bool | None = Field(None, description="Return server-sent events, one for each token; then [DONE].")
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral_values(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        result = {}
        for name, value in data.items():
            if name in UNSUPPORTED and name not in cls.model_fields:
                if value is not None and value not in UNSUPPORTED[name]:
                    raise ApiError(400, f"{name} is not supported", param=name, code="not_supported")
            else:
                result[name] = value
        return result

    def check_stream(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options has no effect without stream: true", param="stream_options")


class CompletionBody(OpenAIFields):
    """One or several texts to continue."""

    prompt: str | Annotated[list[str], FAIL_FAST] | Ids | Annotated[list[Ids], FAIL_FAST] = Field(
        description="A text, token ids, or a list of either. Text never becomes a control token.",
        examples=["One day Mia"],
    )
    max_tokens: int | None = Field(
        None,
        description="The maximum number of tokens. By default generation ends with an end token or a full context.",
    )
    echo: bool | None = Field(
        None, description="Begin the response with the prompt; with logprobs, with its tokens too."
    )
    logprobs: int | None = Field(
        None, description="Return log-probabilities (nats, before sampling), and this many of the most probable tokens."
    )

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, each a text or token ids."""
        prompt = self.prompt
        several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
        prompts: list[Any] = list(prompt) if several else [prompt]
        if len(prompts) * (self.n or 1) > MAX_PROMPTS:
            raise RequestError(
                f"prompts times n must be at most {MAX_PROMPTS}, got {len(prompts)} × {self.n or 1}", param="prompt"
            )
        return prompts


class TextPart(Body):
    type: Literal["text"]
    text: str


class MessageBody(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], FAIL_FAST]
    name: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the message as chat templates expect it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text} | ({} if self.name is None else {"name": self.name})


Messages = Annotated[list[MessageBody], Field(min_length=1), FAIL_FAST]


class ChatBody(OpenAIFields):
    """A conversation to continue."""

    messages: Messages = Field(examples=[[{"role": "user", "content": "Where is Mia?"}]])
    max_completion_tokens: int | None = Field(
        None, description="The maximum number of tokens; by default all that fit."
    )
    max_tokens: int | None = Field(None, description="The older name of max_completion_tokens; give one of them.")
    logprobs: bool | None = Field(None, description="Return the log-probabilities of generated tokens.")
    top_logprobs: int | None = Field(None, description="With logprobs: the number of most probable tokens to return.")

    def token_limit(self) -> tuple[str, int | None]:
        """Return the field that sets the maximum number of tokens, and its value."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise RequestError("give max_completion_tokens or max_tokens, not both", param="max_tokens")
        if self.max_tokens is not None:
            return "max_tokens", self.max_tokens
        return "max_completion_tokens", self.max_completion_tokens

    def n_top_logprobs(self) -> int | None:
        """Return the number of most probable tokens to return, or None for no log-probabilities."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class TraceBody(SamplingFields):
    """A text to trace, optionally continued first."""

    model: str = Field(description="The name of a served model.", examples=["stories"])
    prompt: str | Ids | None = Field(None, description="A text, or token ids.", examples=["One day Mia got a key."])
    target: str | Ids | None = Field(
        None,
        description="For encoder-decoders, whose source is the prompt: the target. By default the model generates it.",
    )
    messages: Messages | None = Field(None, description="A conversation instead of a prompt.")
    max_tokens: int = Field(
        0,
        description="Generate this many tokens first; 0 traces the prompt alone. For encoder-decoders: the maximum "
        "length of the target; 0: until its end.",
    )
    capture: Annotated[list[str], FAIL_FAST] | None = Field(
        None,
        description="Names or patterns of the points to capture. All others are recomputed on demand.",
        examples=[["blocks.0.attn.*"]],
    )
    top: int = Field(
        5, description="With stream: the number of most probable tokens to return for each generated token."
    )
    stream: bool | None = Field(
        None, description="Return events: `token` for each generated token, then `trace`, or `error`."
    )

    def prompt_ids(self, served: ServedModel) -> list[int]:
        """Return the token ids to trace."""
        if self.target is not None:
            raise RequestError("target is for encoder-decoder models, and this model is a decoder", param="target")
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("give either a prompt or messages", param="prompt")
        if self.messages is not None:
            return served.chat_ids([message.as_dict() for message in self.messages])
        return served.language_model.encode(self.prompt or "")

    def trace_arguments(self, served: ServedModel) -> tuple[str | list[int], dict[str, Any]]:
        """Return prompt and keyword arguments of `trace` for a model that is not a decoder.

        Raises RequestError for a field that has no effect on it.
        """
        generates, given = served.kind != "encoder", self.model_dump(exclude_none=True)
        allowed = {"model", "prompt", "capture", "stream", "edits"} | ({"target", "max_tokens"} if generates else set())
        neutral = {"temperature": 0, "max_tokens": 0, "top": type(self).model_fields["top"].default}
        for name, value in given.items():
            if name not in allowed and (name not in neutral or value != neutral[name]):
                why = "it decodes greedily" if generates else "it does not generate text"
                raise RequestError(f"{name} has no effect on a model of the kind {served.kind}: {why}", param=name)
        if self.prompt is None:
            raise RequestError("prompt is missing", param="prompt")
        options: dict[str, Any] = {"capture": self.capture or ()}
        if generates:
            options |= {"target": self.target, "max_tokens": self.max_tokens or None}
        return self.prompt, options

    def generation_options(self) -> dict[str, Any]:
        """Return sampling options and stop strings. Without max_tokens: the given fields, which are rejected later."""
        if self.max_tokens:
            return self.sampling() | {"stop": self.stop_strings()}
        return self.model_dump(exclude_none=True, include=set(SamplingFields.model_fields) - {"edits"})


class VectorBody(Body):
    """A vector to use in edits."""

    values: Annotated[list[float], Field(min_length=1), FAIL_FAST] = Field(examples=[[0.5, -1.0]])


class SweepBody(Body):
    """The same edit applied separately at each head, layer, position or cell."""

    trace: str = Field(description="The id of the trace whose text is processed under each edit.")
    over: str = Field(description="What the sweep iterates over.", examples=["heads", "layers", "positions", "cells"])
    op: str = Field("ablate", description="The operation: ablate, scale or patch; knockout for cells.")
    attention: AttentionKind = Field("attn", description="For encoder-decoders: attn (decoder), encoder, or cross.")
    target: str | int | None = Field(
        None, description="The token whose logit is measured. By default the KL divergence is measured."
    )
    rival: str | int | None = Field(None, description="The token whose logit is subtracted.")
    position: int | None = Field(
        None, description="The position of the logits; by default the last. For encoders: without position, target "
        "and rival, the distance of the text's embedding is measured.",
    )  # fmt: skip
    source: str | None = Field(None, description="For patch: the id of the trace to copy from.")
    align: Literal["start", "end"] | None = Field(
        None,
        description="For patch from a text of another length: pair tokens from the start (default) or the end.",
    )
    point: str | None = Field(None, description="The suffix of the tap point to edit.", examples=["mlp.act"])
    factor: float | None = Field(None, description="For scale: the factor.")
