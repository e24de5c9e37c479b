"""The models that are served, by name."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from glassformer.errors import ConfigError, RequestError
from glassformer.formats.gguf.shards import model_of
from glassformer.inspect.views.viewed import Kind
from glassformer.models.embedder import Embedder
from glassformer.models.language_model import LanguageModel
from glassformer.models.translator import Translator
from glassformer.server.errors import ApiError
from glassformer.server.example_text import opening
from glassformer.text.chat.chat_template import ChatTemplate, chat_templates

AnyModel = LanguageModel | Translator | Embedder
INSTEAD: dict[str, str] = {
    "encoder-decoder": "writes one text from another: POST /v1/traces with the source as `prompt` writes the target",
    "recurrent": "writes one text from another: POST /v1/traces with the source as `prompt` writes the target",
    "encoder": "reads texts and writes none: POST /v1/traces shows what it makes of one",
}


class ServedModel:
    """One model and its name."""

    def __init__(self, name: str, lm: AnyModel):
        self.name, self.lm, self.since = name, lm, int(time.time())
        self._lock = threading.Lock()

    @property
    def kind(self) -> Kind:
        return self.lm.kind

    @property
    def writer(self) -> LanguageModel:
        """The model, where it continues texts. `Refused` says what to do where it does not."""
        if not isinstance(self.lm, LanguageModel):
            why = f"the model {self.name!r} continues no text: it {INSTEAD[self.kind]}"
            raise ApiError(400, why, param="model", code="not_a_language_model")
        return self.lm

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template, where the model has one."""
        known = self.kind == "decoder" and self.lm.tokenizer is not None and chat_templates(self.lm.tokenizer)
        return ChatTemplate(self.lm.tokenizer) if known and self.lm.tokenizer is not None else None

    @cached_property
    def opening(self) -> str | None:
        """What the page reads first, where a story is not of the model's kind."""
        return opening(self.lm)

    def check_writes(self) -> None:
        """`Refused` where it continues no texts."""
        _ = self.writer

    def chat_ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """A conversation as token ids, by the model's own template."""
        with self._lock:  # two conversations at once are rendered one after the other
            if self.template is None:
                raise RequestError(
                    f"the model {self.name!r} has no chat template: use /v1/completions", param="messages"
                )
            developer = "developer" if "developer" in self.template.source else "system"
            known = [one | {"role": developer} if one["role"] == "developer" else one for one in messages]
            return self.template.encode(known, add_generation_prompt=True)

    def spelled(self, token: int) -> tuple[str, bytes | None]:
        """A token's text and bytes. Bytes that are no text by themselves are spelled `bytes:\\xe2\\x80`."""
        if self.lm.tokenizer is None:
            return str(token), None
        data = self.lm.tokenizer.token_bytes(token)
        try:
            return data.decode(), data
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data

    @property
    def described(self) -> dict[str, Any]:
        """As OpenAI describes a model, and what else a client likes to know."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.since,
            "owned_by": "glassformer",
            "kind": self.kind,
            "context_length": getattr(self.lm.config, "context_length", None),  # a recurrent model has none
            "parameters": sum(p.numel() for p in self.lm.model.parameters()),
            "chat": self.template is not None,
            "source": self.lm.source,
            "opening": self.opening,
        }


class ServedModels:
    """The served models."""

    def __init__(self, models: Iterable[tuple[str, AnyModel]]):
        self.all: dict[str, ServedModel] = {}
        for name, lm in models:
            if name in self.all:
                raise ConfigError(f"two models are called {name!r}: name them, as in NAME=MODEL")
            self.all[name] = ServedModel(name, lm)

    def __getitem__(self, name: str) -> ServedModel:
        if name not in self.all:
            known = ", ".join(self.all)
            raise ApiError(
                404, f"there is no model {name[:100]!r}; served: {known}", param="model", code="model_not_found"
            )
        return self.all[name]


def split_name(given: str) -> tuple[str, str]:
    """("name", "model") of what was given as MODEL or NAME=MODEL; a model's own name is its folder's or file's."""
    name, equals, model = given.partition("=")
    if equals and name and model and not Path(given).exists():
        return name, model
    path = Path(given)
    if not path.exists():
        return given, given  # one of the package, or of the hub
    return model_of(path.resolve().name).removesuffix(".safetensors") or given, given
