"""Served models by name."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from glassformer.errors import ConfigError, RequestError
from glassformer.formats.gguf.shards import model_name
from glassformer.inspect.trace.trace import ModelKind
from glassformer.models.embedder import Embedder
from glassformer.models.language_model import LanguageModel
from glassformer.models.translator import Translator
from glassformer.server.errors import ApiError
from glassformer.server.example_text import example_text
from glassformer.text.chat.chat_template import ChatTemplate
from glassformer.text.sentencepiece.model_file import byte_pieces

AnyModel = LanguageModel | Translator | Embedder
ALTERNATIVES: dict[str, str] = {
    "encoder-decoder": "generates a target from a source: use POST /v1/traces with the source as `prompt`",
    "recurrent": "generates a target from a source: use POST /v1/traces with the source as `prompt`",
    "encoder": "is an encoder-only model: use POST /v1/traces to inspect it",
}
CACHE_BYTES = 4 * 2**30  # of the keys and values of all running requests; one may use half of it
DEFAULT_CONTEXT = 2**15  # tokens of a text for a model without a context length: a recurrent one


class ServedModel:
    """One model and its name.

    request_bytes: the memory for the keys and values of one request. template_name: the chat template to use.
    """

    def __init__(self, name: str, lm: AnyModel, request_bytes: int = CACHE_BYTES // 2, template_name: str = "default"):
        self.name, self.lm, self.created, self.request_bytes = name, lm, int(time.time()), request_bytes
        self.template_name = template_name

    @property
    def kind(self) -> ModelKind:
        return self.lm.kind

    @property
    def language_model(self) -> LanguageModel:
        """Return the model if it generates text. Raises ApiError with an alternative otherwise."""
        if not isinstance(self.lm, LanguageModel):
            message = f"the model {self.name!r} does not continue text: it {ALTERNATIVES[self.kind]}"
            raise ApiError(400, message, param="model", code="not_a_language_model")
        return self.lm

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The chat template, or None."""
        if self.lm.tokenizer is None or self.template_name not in self.templates:
            return None
        return ChatTemplate(self.lm.tokenizer, self.template_name)

    @property
    def templates(self) -> dict[str, str]:
        """The chat templates by name."""
        return self.lm.tokenizer.chat_templates if self.kind == "decoder" and self.lm.tokenizer is not None else {}

    @cached_property
    def example_text(self) -> str | None:
        """The text on which the page opens, or None for the page's default."""
        return example_text(self.lm)

    def check_generates(self) -> None:
        """Raise ApiError if the model does not generate text."""
        _ = self.language_model

    @cached_property
    def _max_characters(self) -> int | None:
        """The characters of a text that fills the context with the longest tokens; None without a tokenizer."""
        if self.lm.tokenizer is None:
            return None
        model: Any = self.lm.model
        context = getattr(self.lm.config, "context_length", DEFAULT_CONTEXT)
        if self.kind == "encoder-decoder":
            context = max(context, model.encoder.config.context_length)
        return context * self.lm.tokenizer.longest_token

    def check_length(self, n_characters: int, param: str) -> None:
        """Raise ApiError if a text with so many characters cannot fit the context, before it is encoded."""
        most = self._max_characters
        if most is not None and n_characters > most:
            message = f"{param} has {n_characters:,} characters; the context of {self.name!r} holds at most {most:,}"
            raise ApiError(400, message, param=param, code="context_length_exceeded")

    def encode(self, prompt: str | list[int]) -> list[int]:
        """Return the token ids of a prompt. ApiError for a text that cannot fit the context."""
        if isinstance(prompt, str):
            self.check_length(len(prompt), "prompt")
        return self.language_model.encode(prompt)

    def chat_ids(self, messages: Sequence[dict[str, Any]], variables: Mapping[str, Any] | None = None) -> list[int]:
        """Encode a conversation with the model's chat template.

        variables: of the template. Raises RequestError for one that the template does not read, unless it is false,
        which is the same as undefined.
        """
        if self.chat_template is None:
            names = f", only {', '.join(self.templates)}" if self.templates else ""
            message = f"the model {self.name!r} has no {self.template_name} chat template{names}: use /v1/completions"
            raise RequestError(message, param="messages")
        source, variables = self.chat_template.source, variables or {}
        for name, value in variables.items():
            if value and not re.search(rf"\b{re.escape(name)}\b", source):
                message = (
                    f"{name[:50]} has no effect: the chat template of {self.name!r} does not read it; leave it out"
                )
                raise RequestError(message, param=name[:50])
        self.check_length(sum(len(message["content"] or "") for message in messages), "messages")
        developer = "developer" if "developer" in source else "system"
        messages = [m | {"role": developer} if m["role"] == "developer" else m for m in messages]
        return self.chat_template.encode(messages, add_generation_prompt=True, **variables)

    def token_text(self, token: int) -> tuple[str, bytes | None]:
        """Return a token's text and bytes; "#17" without bytes if the tokenizer has no token of this id.

        Bytes that are not valid UTF-8, and byte tokens (<0xE2>), are written as `bytes:\\xe2\\x80`.
        """
        if self.lm.tokenizer is None:
            return str(token), None
        data = self.lm.tokenizer.find_bytes(token)
        if data is None:  # the model's table has more rows than the tokenizer has tokens
            return f"#{token}", None
        if token not in self._byte_tokens:
            try:
                return data.decode(), data
            except UnicodeDecodeError:
                pass
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data

    @cached_property
    def _byte_tokens(self) -> frozenset[int]:
        """The ids of the tokens <0x00> to <0xFF>, which represent one byte: "A" and <0x41> are different tokens."""
        tokenizer = self.lm.tokenizer
        assert tokenizer is not None
        bytes_of = {tokenizer.backend.vocab.get(name): bytes([byte]) for byte, name in enumerate(byte_pieces())}
        return frozenset(id for id, data in bytes_of.items() if id is not None and tokenizer.token_bytes(id) == data)

    @property
    def description(self) -> dict[str, Any]:
        """Return OpenAI's model object, with more fields."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "glassformer",
            "kind": self.kind,
            "context_length": getattr(self.lm.config, "context_length", None),  # recurrent models have none
            "parameters": self.lm.n_parameters,
            "chat": self.chat_template is not None,
            "source": self.lm.path,
            "example_text": self.example_text,
        }


class ServedModels:
    """All served models."""

    def __init__(
        self,
        models: Iterable[tuple[str, AnyModel]],
        request_bytes: int = CACHE_BYTES // 2,
        template_name: str = "default",
    ):
        self.all: dict[str, ServedModel] = {}
        for name, lm in models:
            if name in self.all:
                raise ConfigError(f"two models have the name {name!r}: give NAME=MODEL")
            self.all[name] = ServedModel(name, lm, request_bytes, template_name)
        if template_name != "default" and not any(template_name in model.templates for model in self.all.values()):
            known = sorted({name for model in self.all.values() for name in model.templates})
            names = ", ".join(known) or "none"
            raise ConfigError(f"no model has the chat template {template_name!r}; the models have {names}")

    def __getitem__(self, name: str) -> ServedModel:
        if name not in self.all:
            names = ", ".join(self.all)
            raise ApiError(
                404,
                f"the model {name[:100]!r} does not exist; available: {names}",
                param="model",
                code="model_not_found",
            )
        return self.all[name]


def split_name(given: str) -> tuple[str, str]:
    """Split NAME=MODEL. Without NAME, a model is named after its folder or file."""
    name, equals, model = given.partition("=")
    if equals and name and model and not Path(given).exists():
        return name, model
    path = Path(given)
    if not path.exists():
        return given, given  # a packaged model, or a model of the Hugging Face Hub
    return model_name(path.resolve().name).removesuffix(".safetensors") or given, given
