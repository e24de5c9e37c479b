"""An encoder-only model: embed texts, compare them, fill masks, trace, save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glassformer.config import PoolingConfig, TextEncoderConfig
from glassformer.errors import CapacityError, CheckpointError, RequestError, TokenizerError
from glassformer.formats import Checkpoint, ModelKind, load_text_encoder, save_model
from glassformer.formats.save import GgufKind, replacing_model
from glassformer.formats.sentence_transformers import write_pooling
from glassformer.generate.request import check_ids
from glassformer.generate.session import pad
from glassformer.inspect.capture.capture import CapturingTap
from glassformer.inspect.edits.apply import Edits
from glassformer.inspect.edits.edit import Edit
from glassformer.inspect.present.traces import EmbedderTrace
from glassformer.inspect.record.many import Progress
from glassformer.inspect.record.seq2seq import record_encoder
from glassformer.kernels.placement import Placement
from glassformer.models.base import TextModel, TextOrIds, patterns, token_ids
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.pooling import SentencePooling
from glassformer.nn.protocols import Tap
from glassformer.nn.step import Step
from glassformer.text.tokenizer import Tokenizer

BATCH_TOKENS = 4096  # tokens per batch, including padding: bounds memory
UNLIMITED = 10**9  # a tokenizer's model_max_length of this size or more means no limit


@dataclass(frozen=True)
class MaskFill:
    """A candidate token for a masked position, with its text and its probability."""

    id: int
    text: str
    probability: float


class Embedder(TextModel):
    """An encoder-only model, its tokenizer, and the pooling of a text's states into one vector.

    max_tokens: the maximal number of tokens of a text, from the model, its pooling or its tokenizer.

    Raises:
        TokenizerError: the tokenizer has more tokens than the model.
    """

    kinds = ("encoder",)
    kind: ModelKind = "encoder"
    model: TextEncoder
    tokenizer: Tokenizer
    trace_type = EmbedderTrace

    def __init__(
        self, model: TextEncoder, tokenizer: Tokenizer, sentence: SentencePooling | None = None, *, path: str = ""
    ):
        self.model, self.tokenizer, self.path = model, tokenizer, path
        self.sentence = SentencePooling(PoolingConfig()) if sentence is None else sentence
        size, limit = model.config.vocab_size, tokenizer.config.get("model_max_length")
        if tokenizer.vocab_size > size:
            where = path or "embedder"
            raise TokenizerError(f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, and the model {size}")
        limit = limit if isinstance(limit, int) and 1 <= limit < UNLIMITED else UNLIMITED
        self.max_tokens = min(model.config.context_length, self.sentence.config.max_tokens or limit)

    @classmethod
    def _load(cls, checkpoint: Checkpoint, placement: Placement) -> Embedder:
        model = load_text_encoder(
            checkpoint, device=placement.device, dtype=placement.stored_dtype, packed=placement.packed
        )
        tokenizer = checkpoint.tokenizer()
        if tokenizer is None:
            raise CheckpointError(f"{checkpoint.path} has no tokenizer, which an embedder needs")
        sentence = checkpoint.pooling().to(device=placement.device, dtype=placement.dtype)
        return cls(model, tokenizer, sentence, path=str(checkpoint.path))

    @property
    def config(self) -> TextEncoderConfig:
        return self.model.config

    @property
    def dimensions(self) -> int:
        """The number of dimensions of an embedding."""
        config = self.sentence.config
        sizes = [self.config.d_model * len(config.pools), *(one.d_out for one in config.after if one != "normalize")]
        return min(sizes[-1], config.dimensions or sizes[-1])

    def encode(self, text: TextOrIds) -> list[int]:
        """Return the token ids of a text, with the tokenizer's special tokens.

        Raises:
            RequestError: the text is empty.
            CapacityError: the text does not fit the context.
        """
        return self._checked(self.tokenizer.encode(text) if isinstance(text, str) else token_ids(text))

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str | None = None,
        truncate: bool = False,
        progress: Progress | None = None,
        edit: Edit | Sequence[Edit] = (),
    ) -> Float[Tensor, "N E"]:
        """Return one vector per text, in float32 on the CPU. The batch does not change a text's vector.

        Args:
            prompt: the name of the model's prompt to put before each text ("query", "document"); None is the model's
                default prompt, if it has one.
            truncate: truncate texts that are too long; otherwise they raise CapacityError.
            progress: called with (texts done, all texts).
            edit: changes to activations, of every text: see `inspect/edits/edit.py`.

        Raises:
            CapacityError: a text is too long; the message has its number.
            RequestError: the prompt is unknown, or a text is empty.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        prefix = self.prompt(prompt)
        sequences = self._encode_batch(texts, prefix, truncate)
        editor = self._editor(edit, min(map(len, sequences), default=1))
        vectors = torch.empty(len(texts), self.dimensions)
        n_skipped = 0 if self.sentence.config.with_prompt else self._prompt_length(prefix)
        done = 0
        for batch in self._batches(sequences):
            vectors[batch] = self._vectors([sequences[i] for i in batch], n_skipped, editor)
            done += len(batch)
            if progress is not None:
                progress(done, len(sequences))
        return vectors

    def prompt(self, name: str | None) -> str:
        """Return the text of the prompt with this name; None is the model's default prompt."""
        config = self.sentence.config
        name = config.prompt if name is None else name
        if name is None:
            return ""
        if name not in config.prompts:
            known = ", ".join(config.prompts) or "none"
            raise RequestError(f"this model has no prompt {name!r}; it has: {known}", param="prompt")
        return config.prompts[name]

    def _encode_batch(self, texts: list[str], prefix: str, truncate: bool) -> list[list[int]]:
        """Return the ids of each text with its prompt and special tokens, checked against `max_tokens`."""
        prompted = [prefix + text for text in texts]
        lower = self.sentence.config.lowercase
        sequences = self.tokenizer.encode_batch([text.lower() for text in prompted] if lower else prompted)
        suffix = self.tokenizer.suffix_ids
        for i, ids in enumerate(sequences):
            where = f"text {i + 1} of {len(texts)}: " if len(texts) > 1 else ""
            if not ids:
                raise RequestError(f"{where}the text is empty", param="text")
            if len(ids) > self.max_tokens and not truncate:
                raise CapacityError(
                    f"{where}the text has {len(ids)} tokens, and the model processes at most {self.max_tokens}: "
                    "shorten it, or set truncate"
                )
            if len(ids) > self.max_tokens:
                sequences[i] = ids[: self.max_tokens - len(suffix)] + suffix
        return sequences

    def _prompt_length(self, prompt: str) -> int:
        """Return the number of tokens of a prompt and the special tokens before it."""
        if not prompt:
            return 0
        text = prompt.lower() if self.sentence.config.lowercase else prompt
        return len(self.tokenizer.prefix_ids) + len(self.tokenizer.encode(text, bare=True))

    def _batches(self, sequences: list[list[int]]) -> Iterator[list[int]]:
        """Yield indices of sequences of similar lengths, which need little padding."""
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        begin = 0
        while begin < len(order):
            size = max(1, BATCH_TOKENS // len(sequences[order[begin]]))
            yield order[begin : begin + size]
            begin += size

    @torch.inference_mode()
    def _vectors(self, sequences: list[list[int]], n_skipped: int, editor: Edits | None) -> Float[Tensor, "B E"]:
        ids, lengths = pad(sequences, self.device)
        states = self.model(ids, with_edits(Step.of(ids, lengths), editor, len(ids)))
        at = torch.arange(ids.shape[1], device=self.device)
        counted = (at < torch.tensor(lengths, device=self.device)[:, None]) & (at >= n_skipped)  # [B, S]
        if not counted.any(-1).all():
            raise RequestError("a text is empty: nothing follows the prompt", param="text")
        return self.sentence(states, counted).float().cpu()

    def similarity(self, a: Float[Tensor, "N E"], b: Float[Tensor, "M E"]) -> Float[Tensor, "N M"]:
        """Return the similarity of each pair of vectors, by the measure that the model was trained with.

        The measure is `sentence.config.similarity`; larger values mean more similar for every measure.
        """
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
        """Return the final state of each token of a text, or of two texts in one sequence."""
        return self.model(*self._prepare(text, second, tap))[0]

    def _editor(self, edits: Edit | Sequence[Edit], length: int) -> Edits | None:
        """Check the edits of texts of at least `length` tokens; None if there are none."""
        return Edits(self.config, edits, [length], length) if edits else None

    def trace(
        self,
        text: TextOrIds,
        target: TextOrIds | None = None,
        *,
        capture: str | Sequence[str] = (),
        edit: Edit | Sequence[Edit] = (),
        budget: int | None = None,
        max_tokens: int | None = None,
        before_forward: Callable[[], None] | None = None,
    ) -> EmbedderTrace:
        """Record the activations of a text: see `TextModel.trace`. An encoder-only model generates nothing."""
        for name, given in (("target", target), ("max_tokens", max_tokens)):
            if given is not None:
                raise RequestError(f"{name} has no effect: an encoder-only model generates no text", param=name)
        ids = self.encode(text)
        check_ids("text", ids, self.config.vocab_size)
        if before_forward is not None:
            before_forward()
        editor = self._editor(edit, len(ids))
        return record_encoder(EmbedderTrace, self, self.model, ids, patterns(capture), budget, editor)

    @torch.inference_mode()
    def follows(self, first: str, second: str) -> float:
        """Return the probability that the second text follows the first (BERT's next-sentence prediction).

        Raises:
            RequestError: the model has no head for next-sentence prediction.
        """
        if self.model.next_sentence is None:
            raise RequestError("this model has no head for next-sentence prediction")
        ids, step = self._prepare(first, second, None)
        return self.model.follows(self.model.pooled(self.model(ids, step), step), step)[0].softmax(-1)[0].item()

    def _prepare(self, text: str, second: str | None, tap: Tap | None) -> tuple[Tensor, Step]:
        """Return the ids of one sequence, [1, S], and its step."""
        ids, types = (self.tokenizer.encode(text), None) if second is None else self.encode_pair(text, second)
        batch = torch.tensor([self._checked(ids)], device=self.device)
        has_types = types is not None and self.config.n_token_types
        return batch, Step.of(batch, types=torch.tensor([types], device=self.device) if has_types else None, tap=tap)

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Return the ids of two texts in one sequence, with special tokens, and the type of each token."""
        (encoded,) = self.tokenizer.encode_pairs([(first, second)])
        return encoded

    def _checked(self, ids: list[int]) -> list[int]:
        if not ids:
            raise RequestError("the text is empty", param="text")
        if len(ids) > self.config.context_length:
            limit = self.config.context_length
            raise CapacityError(f"the text has {len(ids)} tokens, and the model's context holds {limit}")
        return ids

    @torch.inference_mode()
    def fill(self, text: str, *, top: int = 5, edit: Edit | Sequence[Edit] = ()) -> list[list[MaskFill]]:
        """Return the `top` most likely tokens of each masked position of a text.

        Each position is predicted independently, from the tokens that are not masked. edit: as in `embed`.

        Raises:
            RequestError: the text has no mask token, or the model has no masked-language-modelling head.
        """
        if self.model.head is None:
            raise RequestError("this model has no head for masked language modelling")
        if type(top) is not int or not 1 <= top <= self.config.vocab_size:
            raise RequestError(f"top must be from 1 to {self.config.vocab_size}, got {top!r}", param="top")
        ids = self._checked(self.tokenizer.encode_masked(text))
        mask = self.tokenizer.mask_id
        masked = [i for i, token in enumerate(ids) if token == mask]
        if not masked:
            name = self.tokenizer.token_bytes(mask).decode() if mask is not None else ""
            raise RequestError(f"the text has no mask token: put {name} where a token is to be predicted", param="text")
        batch = torch.tensor([ids], device=self.device)
        step, editor = Step.of(batch), self._editor(edit, len(ids))
        states = self.model(batch, with_edits(step, editor))[0, masked]
        logits = self.model.logits(states, with_edits(step.at(step.positions[0, masked]), editor))  # [masked, V]
        best = logits.float().softmax(-1).topk(top)
        return [
            [MaskFill(id, self.tokenizer.token_text(id), probability) for id, probability in zip(*one, strict=True)]
            for one in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None, **options: Any) -> None:
        """Save a folder that `transformers` and `sentence-transformers` open. Options as in `save_model`."""
        with replacing_model(folder) as new:
            save_model(self.model, new, dtype=dtype, **options)
            self.tokenizer.save(new)
            write_pooling(self.sentence, new, self.config.d_model)

    def save_gguf(self, path: str | Path, kind: GgufKind = "F16", *, progress: Progress | None = None) -> None:
        """Save one GGUF file with its pooling: see `TextModel.save_gguf`.

        GGUF has no fields for a pooler and heads (`left_out` of `formats/gguf/save.py`), for named prompts, and for a
        token limit below the model's.
        """
        from glassformer.formats.gguf.metadata import write_metadata
        from glassformer.formats.gguf.pooling import pooling_to_gguf
        from glassformer.formats.gguf.save import save_gguf
        from glassformer.formats.gguf.tokenizer_write import tokenizer_to_gguf, warn_of_losses

        metadata = tokenizer_to_gguf(self.tokenizer, self.config.vocab_size)
        metadata |= pooling_to_gguf(self.sentence, write_metadata(self.config).architecture)
        warn_of_losses(self.tokenizer)
        save_gguf(self.model, path, kind, extra=metadata, progress=progress)


def with_edits(step: Step, editor: Edits | None, n_sequences: int = 1) -> Step:
    """Set the tap that applies the edits to every sequence of a step."""
    if editor is not None:
        step.tap = CapturingTap(step, [0] * n_sequences, editor, None)
    return step
