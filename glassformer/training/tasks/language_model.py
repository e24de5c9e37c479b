"""Train a decoder on packed sequences of text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from glassformer.models.language_model import LanguageModel
from glassformer.nn.model import Decoder
from glassformer.text.files.load import load_tokenizer
from glassformer.training.config import LanguageModelTaskConfig, TrainConfig
from glassformer.training.data.packing import PackedBatch, PackedLoader, packed_eval_batches
from glassformer.training.data.shards import Shards
from glassformer.training.run.distributed import ProcessGroup
from glassformer.training.run.precision import matrix_flops_per_token, matrix_shapes
from glassformer.training.tasks.evaluate import Compute, Evaluation, evaluate
from glassformer.training.tasks.language_model_setup import (
    check_language_model,
    check_prompt,
    create_model,
    prepare_text,
)


class LanguageModelTask:
    """The `Task` of a decoder. checkpoint: the model folder to resume from; None to start."""

    check, prepare = staticmethod(check_language_model), staticmethod(prepare_text)

    def __init__(self, config: TrainConfig, world: ProcessGroup, compute: Compute, checkpoint: Path | None):
        assert isinstance(config.task, LanguageModelTaskConfig)
        folder = Path(config.out)
        tokenizer, self.shards = load_tokenizer(folder / "tokenizer"), Shards(folder / "data")
        check_prompt(config, tokenizer)
        self.config, self.task, self.world, self.compute = config, config.task, world, compute
        self.lm = LanguageModel(create_model(config, tokenizer.vocab_size, checkpoint, compute.device), tokenizer)
        self.fingerprint, self.unk_id = self.shards.fingerprint, tokenizer.unk_id
        self.train_tokens, self.held_out_tokens = self.shards.train.n_tokens, self.shards.held_out.n_tokens
        self.set_batch(config.batch)
        self.matrices = matrix_shapes(self.model)
        self.flops_per_token = float(matrix_flops_per_token(self.matrices))

    def set_batch(self, batch: int) -> None:
        config, world = replace(self.config, batch=batch), self.world
        self.config, self.batch_tokens = config, batch // world.size * self.task.context
        self.loader = PackedLoader(self.shards, self.task.context, batch, config.seed, world.rank, world.size)

    @staticmethod
    def verify(folder: Path) -> None:
        """Compare the prepared data with its checksums. Raises DataError."""
        Shards(folder / "data").verify()

    @property
    def model(self) -> Decoder:
        return self.lm.model

    def steps_for(self, tokens: int) -> int:
        """See `Task`. Counts every token as a target; the last token of a document is none."""
        config = self.config
        return -(-tokens // (config.batch * config.accumulate * self.task.context))

    def loss(self, batch: PackedBatch) -> Tensor:
        return self.compute.loss(self.model, batch)

    def evaluate(self) -> Evaluation | None:
        documents, config, world = self.shards.held_out, self.config, self.world
        if not documents.n_documents or not (documents.lengths > 1).any():
            return None
        batches = packed_eval_batches(
            documents,
            self.task.context,
            config.batch,
            config.eval_tokens,
            fill=self.task.compile,
            rank=world.rank,
            world_size=world.size,
        )
        return evaluate(self.model, batches, self.compute, world, self.unk_id)

    def sample(self) -> str:
        """Return the prompt and its continuation, always with the same seed."""
        prompt, lm = self.config.sample_prompt, self.lm
        ids = lm.encode(prompt)
        max_tokens = min(self.config.sample_tokens, lm.config.context_length - len(ids))
        return prompt + lm.generate(ids, max_tokens=max_tokens, temperature=0.8, seed=self.config.seed).text

    def save(self, folder: Path) -> None:
        self.lm.save(folder)
