"""The JSON bodies of requests. Unknown fields and values of a wrong type are rejected with an error that names them.

Ranges are checked by `Sampling` and `GenerationRequest`, with the same messages for every caller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from glassformer.errors import RequestError
from glassformer.generate.sampling import Sampling
from glassformer.inspect.edits.edit import Op
from glassformer.inspect.views.layer import AttentionKind
from glassformer.server.errors import ApiError
from glassformer.server.models import ServedModel
from glassformer.text.special_tokens import TOKEN_NAMES

# Fields that other servers have and that never change the generated text: any value is accepted. They name the client's
# user, label or store the request, choose its price and priority, or make it faster.
NO_EFFECT = frozenset({
    "cache_prompt", "cache_salt", "metadata", "parallel_tool_calls", "prediction", "priority", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention", "request_id", "safety_identifier", "service_tier", "store",
    "user",
})  # fmt: skip

# Fields of OpenAI's API that this server does not support, with the values that request nothing and are accepted.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (), "function_call": ("none", "auto"), "functions": ([],), "modalities": (["text"],), "moderation": (),
    "reasoning_effort": ("none",), "response_format": ({"type": "text"},), "suffix": ("",),
    "tool_choice": ("none", "auto"), "tools": ([],), "verbosity": ("medium",), "web_search_options": (),
}  # fmt: skip


SEEDS = 1 << 63  # seeds are from 0 to SEEDS - 1
MAX_PROMPTS = 128  # texts of one request, continuations included
MAX_IDS = 2**20  # token ids of a prompt
MAX_STOPS, MAX_STOP_LENGTH = 64, 1024  # stop strings, and characters of one
MAX_BIASES = 2**14  # tokens of logit_bias
MAX_EDITS, MAX_INDICES = 256, 2**16  # edits, and indices of one axis of an edit
MAX_MESSAGES, MAX_PARTS = 4096, 256  # messages of a conversation, and parts of one message
MAX_VARIABLES = 64  # of a chat template
MAX_PATTERNS = 256  # of points to capture
MAX_VECTOR = 2**20  # numbers of a stored vector
MAX_NAME = 512  # characters of a name: of a model, trace, point, vector

RESERVED_VARIABLES = {"self", "messages", "tools", "documents", "add_generation_prompt", "now", *TOKEN_NAMES}
"""Variables of chat templates that requests cannot set."""


def up_to(n: int) -> Any:
    """Return the constraint of a list of at most `n` items, which reports only its first wrong item."""
    return Field(max_length=n, fail_fast=True)


Ids = Annotated[list[int], up_to(MAX_IDS)]
Name = Annotated[str, Field(max_length=MAX_NAME)]
StopString = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]


def _whole(value: Any) -> Any:
    """Return 16 for 16.0, which JSON does not distinguish."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class Body(BaseModel):
    """A request's JSON object. An unknown field whose value is null is the same as an absent one."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # unsupported fields: the values that are accepted
    no_effect: ClassVar[frozenset[str]] = frozenset()  # accepted with any value

    @model_validator(mode="before")
    @classmethod
    def _check_field_names(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        known = {}
        for name, value in data.items():
            if name in cls.model_fields:
                known[name] = value
            elif value is None or value in cls.neutral.get(name, ()) or name in cls.no_effect:
                continue
            elif name in cls.neutral:
                raise ApiError(400, f"{name} is not supported", param=name, code="not_supported")
            else:
                names = ", ".join(cls.model_fields)
                raise RequestError(f"unknown field {str(name)[:100]!r}; known: {names}", param=str(name)[:100])
        return known


Number = float | Literal["NaN", "Infinity", "-Infinity"]
Indices = int | Annotated[list[int], up_to(MAX_INDICES)] | None


class EditBody(Body):
    """A change to a value inside the model: see `inspect/edits/edit.py`. An index that is left out means all."""

    op: Op = Field(description="The operation.", examples=["ablate"])
    point: Name = Field(description="The tap point.", examples=["blocks.0.attn.z"])
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
    vector: Name | None = Field(None, description="... or a vector, by the name that POST /v1/vectors returned.")
    from_trace: Name | None = Field(None, description="For patch: the id of the trace to copy from.")


class SamplingFields(Body):
    """The fields of `Sampling`, under the names that OpenAI and others use."""

    temperature: float | None = Field(
        None, description="0 always takes the most probable token. Default 1.", examples=[0.7]
    )
    top_p: float | None = Field(
        None, description="Sample from the smallest set of tokens whose probabilities sum to p."
    )
    top_k: Whole | None = Field(None, description="Sample from the k most probable tokens; 0 and -1: from all.")
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
    logit_bias: Annotated[dict[Name, float], Field(max_length=MAX_BIASES)] | None = Field(
        None, description="Added to logits, by token id.", examples=[{"50": -9}]
    )
    seed: Whole | None = Field(
        None, description="The same seed gives the same text. The response returns the seed. -1: a random seed."
    )
    stop: StopString | Annotated[list[StopString], up_to(MAX_STOPS)] | None = Field(
        None, description="Stop before this text, or any of these texts. Empty texts have no effect."
    )
    edits: Annotated[list[EditBody], up_to(MAX_EDITS)] | None = Field(
        None,
        description="Changes to values inside the model, as in `lm.generate(edit=[...])`.",
        examples=[[{"op": "ablate", "point": "blocks.0.attn.z", "head": 3}]],
    )

    def sampling(self) -> dict[str, Any]:
        """Return the given fields of `Sampling`, checked.

        At temperature 0, top_p, top_k, min_p and seed have no effect and are dropped. Negative seeds, which other
        servers accept, are taken modulo 2^63.
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
        if given.get("top_k") in (0, -1):
            del given["top_k"]
        if given.get("seed") == -1:
            del given["seed"]
        elif -SEEDS <= given.get("seed", 0) < 0:
            given["seed"] += SEEDS
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
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        return tuple(stop for stop in stops if stop)


def _token_id(key: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", key):
        raise RequestError(f"logit_bias must map token ids to numbers, got the id {key[:50]!r}", param="logit_bias")
    return int(key)


class StreamOptions(Body):
    include_usage: bool | None = Field(None, description="End the stream with a chunk that holds the token counts.")
    continuous_usage_stats: bool | None = Field(
        None, description="With include_usage: every chunk holds the token counts so far."
    )
    include_obfuscation: bool | None = Field(
        None, description="Add a field `obfuscation` of random characters, so that chunks have similar sizes."
    )


class OpenAIFields(SamplingFields):
    """The fields that completions and chat completions share."""

    neutral = UNSUPPORTED
    no_effect = NO_EFFECT

    model: Name = Field(description="The name of a served model.", examples=["stories"])
    n: Whole | None = Field(
        None, description="The number of continuations. Their seeds are consecutive; at temperature 0 they are equal."
    )
    best_of: Whole | None = Field(None, description="Accepted if it equals n: all continuations are returned.")
    max_completion_tokens: Whole | None = Field(
        None,
        description="The maximum number of tokens. By default generation ends with an end token or a full context.",
    )
    max_tokens: Whole | None = Field(None, description="The same as max_completion_tokens; give one of them.")
    min_tokens: Whole | None = Field(
        None, description="No end token is generated, and no stop string has an effect, before this many tokens."
    )
    ignore_eos: bool | None = Field(None, description="Continue after end tokens, which then are part of the text.")
    stream: bool | None = Field(None, description="Return server-sent events, one for each token; then [DONE].")
    stream_options: StreamOptions | None = None

    def check_options(self) -> None:
        """Raise RequestError for options that have no effect without another one."""
        if not self.stream and self.stream_options is not None and any(self.stream_options.model_dump().values()):
            raise RequestError("stream_options has no effect without stream: true", param="stream_options")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise RequestError(
                f"best_of must equal n, which is {self.n or 1}, got {self.best_of}: all continuations are returned",
                param="best_of",
            )

    def token_limit(self) -> tuple[str, int | None]:
        """Return the field that sets the maximum number of tokens, and its value."""
        limits = {name: getattr(self, name) for name in ("max_completion_tokens", "max_tokens")}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        if len(set(given.values())) > 1:
            raise RequestError(
                f"give max_completion_tokens or max_tokens, not both, got {limits['max_completion_tokens']} and "
                f"{limits['max_tokens']}", param="max_tokens",
            )  # fmt: skip
        return next(iter(given.items()), ("max_tokens", None))


class CompletionBody(OpenAIFields):
    """One or several texts to continue."""

    prompt: str | Annotated[list[str], up_to(MAX_PROMPTS)] | Ids | Annotated[list[Ids], up_to(MAX_PROMPTS)] = Field(
        description="A text, token ids, or a list of either. Text never becomes a control token.",
        examples=["One day Mia"],
    )
    echo: bool | None = Field(
        None, description="Begin the response with the prompt; with logprobs, with its tokens too."
    )
    logprobs: Whole | None = Field(
        None,
        description="Return log-probabilities (nats, before sampling) of the tokens, with the end token, and of this "
        "many of the most probable tokens.",
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

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(kind := data.get("type"), str) and kind != "text":
            message = f"a message part of the type {kind[:50]!r} is not supported: the only type is 'text'"
            raise ApiError(400, message, param="messages", code="not_supported")
        return data


class MessageBody(Body):
    """One message of a conversation. Answers of this server, and of others without tool calls, are accepted."""

    neutral = {
        "annotations": ([],), "audio": (), "function_call": (), "refusal": (), "tool_calls": ([],),
    }  # fmt: skip

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], up_to(MAX_PARTS)] | None = Field(
        None,
        description="A text, or parts of one. Only the assistant's may be null, which is the same as empty.",
        validate_default=True,
    )
    name: Name | None = None
    reasoning_content: str | None = Field(None, description="The assistant's reasoning, for the chat template.")
    reasoning: str | None = Field(None, description="The same as reasoning_content.")

    @field_validator("content")
    @classmethod
    def _check_content(cls, content: Any, info: ValidationInfo) -> Any:
        if content is None and info.data.get("role", "assistant") != "assistant":
            raise ValueError(f"content is missing in a message of the role {info.data['role']}")
        return content

    def as_dict(self) -> dict[str, Any]:
        """Return the message as chat templates expect it."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        names = ("name", "reasoning_content", "reasoning")
        rest = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {"role": self.role, "content": text} | rest


Messages = Annotated[list[MessageBody], Field(min_length=1), up_to(MAX_MESSAGES)]


class ChatBody(OpenAIFields):
    """A conversation to continue."""

    messages: Messages = Field(examples=[[{"role": "user", "content": "Where is Mia?"}]])
    logprobs: bool | None = Field(
        None, description="Return the log-probabilities of generated tokens, the end token included."
    )
    top_logprobs: Whole | None = Field(None, description="With logprobs: the number of most probable tokens to return.")
    reasoning_effort: Name | None = Field(None, description="For the chat template, if it reads this variable.")
    chat_template_kwargs: Annotated[dict[Name, Any], Field(max_length=MAX_VARIABLES)] | None = Field(
        None, description="Variables of the chat template.", examples=[{"enable_thinking": False}]
    )

    def template_variables(self) -> dict[str, Any]:
        """Return the variables of the chat template. Reasoning effort "none" is the same as absent."""
        variables = {name: value for name, value in (self.chat_template_kwargs or {}).items() if value is not None}
        if reserved := next((name for name in variables if name in RESERVED_VARIABLES), None):
            raise RequestError(f"chat_template_kwargs: {reserved} is set by the server", param="chat_template_kwargs")
        effort = {} if self.reasoning_effort in (None, "none") else {"reasoning_effort": self.reasoning_effort}
        return variables | effort

    def n_top_logprobs(self) -> int | None:
        """Return the number of most probable tokens to return, or None for no log-probabilities."""
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class TraceBody(SamplingFields):
    """A text to trace, optionally continued first."""

    model: Name = Field(description="The name of a served model.", examples=["stories"])
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
    capture: Annotated[list[Name], up_to(MAX_PATTERNS)] | None = Field(
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
        return served.encode(self.prompt or "")

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
        for name in ("prompt", "target"):
            if isinstance(text := getattr(self, name), str):
                served.check_length(len(text), name)
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

    values: Annotated[list[float], Field(min_length=1), up_to(MAX_VECTOR)] = Field(examples=[[0.5, -1.0]])


class SweepBody(Body):
    """The same edit applied separately at each head, layer, position or cell."""

    trace: Name = Field(description="The id of the trace whose text is processed under each edit.")
    over: Name = Field(description="What the sweep iterates over.", examples=["heads", "layers", "positions", "cells"])
    op: Name = Field("ablate", description="The operation: ablate, scale or patch; knockout for cells.")
    attention: AttentionKind = Field("attn", description="For encoder-decoders: attn (decoder), encoder, or cross.")
    target: Name | int | None = Field(
        None, description="The token whose logit is measured. By default the KL divergence is measured."
    )
    rival: Name | int | None = Field(None, description="The token whose logit is subtracted.")
    position: int | None = Field(
        None, description="The position of the logits; by default the last. For encoders: without position, target "
        "and rival, the distance of the text's embedding is measured.",
    )  # fmt: skip
    source: Name | None = Field(None, description="For patch: the id of the trace to copy from.")
    align: Literal["start", "end"] | None = Field(
        None,
        description="For patch from a text of another length: pair tokens from the start (default) or the end.",
    )
    point: Name | None = Field(None, description="The suffix of the tap point to edit.", examples=["mlp.act"])
    factor: float | None = Field(None, description="For scale: the factor.")
