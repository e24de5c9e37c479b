"""A model that reads texts, as a person uses it: embed them, compare them, fill hidden places, save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glassformer.config import PoolingConfig, TextEncoderConfig
from glassformer.errors import CapacityError, CheckpointError, RequestError, TokenizerError
from glassformer.formats import load_text_encoder, save_model
from glassformer.formats.checkpoint import open_checkpoint
from glassformer.formats.find import find_model, tokenizer_of
from glassformer.formats.gguf.pooling import pooling_from_gguf
from glassformer.formats.save import GgufKind
from glassformer.formats.sentence_transformers import read_pooling, transformer_folder, write_pooling
from glassformer.generate.request import check_ids
from glassformer.inspect.capture.capture import CapturingTap
from glassformer.inspect.edits.apply import Edits
from glassformer.inspect.edits.edit import Edit
from glassformer.inspect.present.traces import EmbedderTrace
from glassformer.inspect.record.seq2seq import record_encoder
from glassformer.inspect.record.store import load as load_trace
from glassformer.inspect.sweep.sweep import Sweep, sweep
from glassformer.inspect.trace.trace import ModelKind, Trace
from glassformer.inspect.views.methods import ModelViews
from glassformer.kernels.describe import describe
from glassformer.kernels.placement import Choice, choose_placement
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.pooling import Sentence
from glassformer.nn.protocols import Tap
from glassformer.nn.step import Step
from glassformer.text.tokenizer import Tokenizer

BATCH = 4096  # tokens that are read at a time, padding included: bounds memory
ENDLESS = 10**9  # a tokenizer's model_max_length from here on means that it does not say

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Guess:
    """A token that may stand in a hidden place, with its probability there. `text`: as it would be read."""

    id: int
    text: str
    probability: float


class Embedder(ModelViews):
    """An encoder, its tokenizer, and how the states of a text become one vector.

    limit: the most tokens a text may have. TokenizerError where the tokenizer has more tokens than the model.
    """

    kind: ModelKind = "encoder"
    choices: tuple[Choice, ...] = ()

    def __init__(self, model: TextEncoder, tokenizer: Tokenizer, sentence: Sentence | None = None, *, source: str = ""):
        self.model, self.tokenizer, self.source = model, tokenizer, source
        self.sentence = Sentence(PoolingConfig()) if sentence is None else sentence
        size, said = model.config.vocab_size, tokenizer.config.get("model_max_length")
        if tokenizer.vocab_size > size:
            where = source or "embedder"
            raise TokenizerError(f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, and the model {size}")
        own = said if isinstance(said, int) and 1 <= said < ENDLESS else ENDLESS
        self.limit = min(model.config.context_length, self.sentence.config.max_tokens or own)

    @property
    def config(self) -> TextEncoderConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.embed.weight.device

    @property
    def dimensions(self) -> int:
        """How many numbers a vector has."""
        config = self.sentence.config
        sizes = [self.config.d_model * len(config.pools), *(one.d_out for one in config.after if one != "normalize")]
        return min(sizes[-1], config.dimensions or sizes[-1])

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str | None = None,
        truncate: bool = False,
        progress: Progress | None = None,
        edit: Sequence[Edit] = (),
    ) -> Float[Tensor, "N E"]:
        """One vector for each text, in float32 on the CPU. Texts in one batch do not change one another.

        prompt: the name of a text that the model wants before these ("query", "document"); by default the one that it
        names itself, if any. truncate: cut a text that is too long, at its end. progress: called with how many texts
        are done, and of how many. edit: changes to what flows through the model meanwhile, of every text, see
        `inspect/edit.py`. CapacityError names the first text that is too long, RequestError an unknown prompt.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        before = self.prompt(prompt)
        rows = self._rows(texts, before, truncate)
        editor = self._editor(edit, min(map(len, rows), default=1))
        found = torch.empty(len(texts), self.dimensions)
        skipped = 0 if self.sentence.config.with_prompt else self._length(before)
        done = 0
        for some in self._batches(rows):
            found[some] = self._vectors([rows[i] for i in some], skipped, editor)
            done += len(some)
            if progress is not None:
                progress(done, len(rows))
        return found

    def prompt(self, name: str | None) -> str:
        """The text of a prompt by its name; of None, what the model puts before a text of its own accord."""
        config = self.sentence.config
        name = config.prompt if name is None else name
        if name is None:
            return ""
        if name not in config.prompts:
            known = ", ".join(config.prompts) or "none"
            raise RequestError(f"this model has no prompt {name!r}; it has: {known}", param="prompt")
        return config.prompts[name]

    def _rows(self, texts: list[str], before: str, truncate: bool) -> list[list[int]]:
        """The ids of texts, framed and not too long."""
        whole = [before + text for text in texts]
        rows = self.tokenizer.encode_batch(
            [text.lower() for text in whole] if self.sentence.config.lowercase else whole
        )
        after = self.tokenizer.suffix_ids
        for i, row in enumerate(rows):
            where = f"text {i + 1} of {len(texts)}: " if len(texts) > 1 else ""
            if not row:
                raise RequestError(f"{where}there is nothing to read: the text is empty", param="text")
            if len(row) > self.limit and not truncate:
                raise CapacityError(
                    f"{where}the text has {len(row)} tokens, and the model reads at most {self.limit}: "
                    "give less of it, or cut it (truncate)"
                )
            if len(row) > self.limit:
                rows[i] = row[: self.limit - len(after)] + after
        return rows

    def _length(self, prompt: str) -> int:
        """How many tokens a prompt takes, with what the tokenizer puts before it."""
        if not prompt:
            return 0
        text = prompt.lower() if self.sentence.config.lowercase else prompt
        return len(self.tokenizer.prefix_ids) + len(self.tokenizer.encode(text, bare=True))

    def _batches(self, rows: list[list[int]]) -> Iterator[list[int]]:
        """Numbers of rows, of like length together: little padding."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        at = 0
        while at < len(order):
            width = max(1, BATCH // len(rows[order[at]]))
            yield order[at : at + width]
            at += width

    @torch.inference_mode()
    def _vectors(self, rows: list[list[int]], skipped: int, editor: Edits | None) -> Float[Tensor, "B E"]:
        lengths = [len(row) for row in rows]
        ids = torch.tensor([row + [0] * (max(lengths) - len(row)) for row in rows], device=self.device)
        states = self.model(ids, edited(Step.of(ids, lengths), editor, len(rows)))
        at = torch.arange(ids.shape[1], device=self.device)
        counted = (at < torch.tensor(lengths, device=self.device)[:, None]) & (at >= skipped)  # [B, S]
        if not counted.any(-1).all():
            raise RequestError("there is nothing to pool behind the prompt: a text is empty", param="text")
        return self.sentence(states, counted).float().cpu()

    def similarity(self, a: Float[Tensor, "N E"], b: Float[Tensor, "M E"]) -> Float[Tensor, "N M"]:
        """How alike vectors are, more being more, by what the model was trained for: `sentence.config.similarity`."""
        match self.sentence.config.similarity:
            case "cosine":
                return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
            case "dot":
                return a @ b.T
            case "euclidean":
                return -torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
            case "manhattan":
                return -torch.cdist(a, b, p=1)

    @torch.inference_mode()
    def states(self, text: str, second: str | None = None, *, tap: Tap | None = None) -> Float[Tensor, "S D"]:
        """What each token of a text, or of a pair of texts in one row, means where it stands; a tap may look."""
        return self.model(*self._pass(text, second, tap))[0]

    def _editor(self, edits: Sequence[Edit], length: int) -> Edits | None:
        """The edits of texts of at least so many tokens, checked."""
        return Edits(self.config, edits, [length], length) if edits else None

    def trace(
        self,
        text: str | Sequence[int],
        *,
        capture: Sequence[str] = (),
        edit: Sequence[Edit] = (),
        budget: int | None = None,
    ) -> EmbedderTrace:
        """Every number of a text inside the encoder: see `inspect/sourced.py`. All else is as of a decoder's.

        A text is framed as the tokenizer says; token ids are read as they are. RequestError for a point that the model
        has not; CapacityError where the text is longer than the context, or what is read than the budget.
        """
        ids = self.tokenizer.encode(text) if isinstance(text, str) else [index(token) for token in text]
        self._check(ids)
        check_ids("text", ids, self.config.vocab_size)
        some, editor = (capture,) if isinstance(capture, str) else tuple(capture), self._editor(edit, len(ids))
        return record_encoder(EmbedderTrace, self, self.model, ids, some, budget, editor)

    def sweep(self, text: str | Trace, **how: Any) -> Sweep:
        """One edit after another, at every head, layer or token: iterate over it. `how`: see `inspect/sweep.py`."""
        return sweep(self.trace(text) if isinstance(text, str) else text, **how)

    def load_trace(self, folder: str | Path) -> EmbedderTrace:
        """A trace that was saved, of this very model. CheckpointError where it is of another, or not whole."""
        return load_trace(EmbedderTrace, self, folder)

    @torch.inference_mode()
    def follows(self, first: str, second: str) -> float:
        """The probability that the second text follows the first. RequestError where the model has no head for it."""
        if self.model.next_sentence is None:
            raise RequestError("this model has no head that tells whether a text follows another")
        ids, step = self._pass(first, second, None)
        return self.model.follows(self.model.pooled(self.model(ids, step), step), step)[0].softmax(-1)[0].item()

    def _pass(self, text: str, second: str | None, tap: Tap | None) -> tuple[Tensor, Step]:
        """The ids of one row [1, S], and its pass."""
        ids, types = (self.tokenizer.encode(text), None) if second is None else self.pair(text, second)
        self._check(ids)
        row = torch.tensor([ids], device=self.device)
        kinds = None if types is None or not self.config.n_token_types else torch.tensor([types], device=self.device)
        return row, Step.of(row, types=kinds, tap=tap)

    def pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Two texts in one row, framed as the tokenizer says: the ids, and the type of each token."""
        (found,) = self.tokenizer.encode_pairs([(first, second)])
        return found

    def _check(self, ids: list[int]) -> None:
        if not ids:
            raise RequestError("there is nothing to read: the text is empty", param="text")
        if len(ids) > self.config.context_length:
            limit = self.config.context_length
            raise CapacityError(f"the text has {len(ids)} tokens, and the model's context holds {limit}")

    @torch.inference_mode()
    def fill(self, text: str, *, top: int = 5, edit: Sequence[Edit] = ()) -> list[list[Guess]]:
        """The `top` likeliest tokens for each hidden place of a text, which the mask token's name stands for.

        Each place is guessed by itself, from all that is not hidden. edit: as of `embed`.
        RequestError where the text hides none, or where the model has no head to guess with.
        """
        if self.model.head is None:
            raise RequestError("this model has no head that guesses hidden tokens: it was saved without one")
        if type(top) is not int or not 1 <= top <= self.config.vocab_size:
            raise RequestError(f"top must be from 1 to {self.config.vocab_size}, got {top!r}", param="top")
        ids = self.tokenizer.encode_masked(text)
        mask = self.tokenizer.mask_id
        places = [i for i, token in enumerate(ids) if token == mask]
        if not places:
            name = self.tokenizer.token_bytes(mask).decode() if mask is not None else ""
            raise RequestError(f"the text hides no place: write {name} where a token is to be guessed", param="text")
        self._check(ids)
        row = torch.tensor([ids], device=self.device)
        step, editor = Step.of(row), self._editor(edit, len(ids))
        states = self.model(row, edited(step, editor))[0, places]
        logits = self.model.logits(states, edited(step.at(step.positions[0, places]), editor))  # [places, V]
        best = logits.float().softmax(-1).topk(top)
        return [
            [Guess(id, self._spelled(id), value) for id, value in zip(*one, strict=True)]
            for one in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _spelled(self, token: int) -> str:
        """A token as it would be read; "" where the tokenizer has none of this number."""
        try:
            return self.tokenizer.token_bytes(token).decode("utf-8", "replace")
        except TokenizerError:
            return ""

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None, **how: Any) -> None:
        """Write a folder that `transformers` and `sentence-transformers` open. `how`: as of `save_model`."""
        save_model(self.model, folder, dtype=dtype, **how)
        self.tokenizer.save(folder)
        write_pooling(self.sentence, Path(folder), self.config.d_model)

    def save_gguf(self, path: str | Path, kind: GgufKind = "F16") -> None:
        """Write one GGUF file, tokenizer and pooling inside, which llama.cpp and its kin embed texts with.

        It has no place for a pooler and heads (`left_out` of `weights/gguf_save.py`), for prompts that are asked for by
        name, and for a limit of tokens below the model's. ConfigError and TokenizerError for what changes a vector.
        """
        from glassformer.formats.gguf.metadata import write_metadata
        from glassformer.formats.gguf.pooling import pooling_to_gguf
        from glassformer.formats.gguf.save import save_gguf
        from glassformer.formats.gguf.tokenizer_write import tokenizer_to_gguf

        words = tokenizer_to_gguf(self.tokenizer, self.config.vocab_size)
        words |= pooling_to_gguf(self.sentence, write_metadata(self.config).architecture)
        save_gguf(self.model, path, kind, extra=words)

    def __repr__(self) -> str:
        n = sum(p.numel() for p in self.model.parameters())
        return f"Embedder({self.source or self.config.family}, {n / 1e6:.2f}M parameters, {self.dimensions} dimensions)"


def edited(step: Step, editor: Edits | None, rows: int = 1) -> Step:
    """A pass under edits, the same for all its rows."""
    if editor is not None:
        step.tap = CapturingTap(step, [0] * rows, editor, None)
    return step


def load_embedder(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    ignore_keys: Sequence[str] = (),
    offline: bool = False,
) -> Embedder:
    """An encoder's model folder, with or without what `sentence-transformers` lays beside, a GGUF file, or
    `owner/name[@revision]` on the hub. Where nothing says how states become one vector, it is their mean.

    CheckpointError names what is missing or does not fit; ConfigError what is not understood, or a device or dtype that
    cannot be used.
    """
    folder = find_model(transformer_folder(Path(path)), offline=offline)
    checkpoint = open_checkpoint(folder, tuple(ignore_keys))
    placement = choose_placement(device, dtype, stored=checkpoint.dtype, n_parameters=checkpoint.n_parameters)
    model = load_text_encoder(checkpoint, device=placement.device, dtype=placement.dtype)
    tokenizer = tokenizer_of(folder, checkpoint.metadata)
    if tokenizer is None:
        raise CheckpointError(f"{folder} has no tokenizer, and an embedder reads texts")
    if checkpoint.metadata:
        sentence = pooling_from_gguf(checkpoint.metadata, str(folder))
    else:
        beside = Path(path) if (Path(path) / "modules.json").exists() else folder.parent if folder.is_file() else folder
        sentence = read_pooling(beside, model.config.d_model)
    sentence = sentence.to(device=placement.device, dtype=placement.dtype)
    embedder = Embedder(model, tokenizer, sentence, source=str(folder))
    embedder.choices = describe(model.config, placement)
    return embedder
