"""A language model in training: a decoder, and rows of packed text."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from glassformer.models.language_model import LanguageModel
from glassformer.nn.model import Decoder
from glassformer.text.files.load import load_tokenizer
from glassformer.training.config import TrainConfig
from glassformer.training.data.packing import PackedBatch, PackedLoader, packed_eval_batches
from glassformer.training.data.shards import Shards
from glassformer.training.run.distributed import ProcessGroup
from glassformer.training.run.precision import matrix_flops_per_token, matrix_shapes
from glassformer.training.tasks.evaluate import Compute, Evaluation, evaluate
from glassformer.training.tasks.language_model_setup import create_model, prepare_text


class LanguageModelTask:
    """See `Task`. checkpoint: the model folder to go on from, None to begin."""

    prepare = staticmethod(prepare_text)

    def __init__(self, config: TrainConfig, world: ProcessGroup, compute: Compute, checkpoint: Path | None):
        folder = Path(config.out)
        tokenizer, self.shards = load_tokenizer(folder / "tokenizer"), Shards(folder / "data")
        self.config, self.world, self.compute = config, world, compute
        self.lm = LanguageModel(create_model(config, tokenizer.vocab_size, checkpoint, compute.device), tokenizer)
        self.loader = PackedLoader(self.shards, config.context, config.batch, config.seed, world.rank, world.size)
        self.fingerprint = self.shards.fingerprint
        self.train_tokens, self.held_out_tokens = self.shards.train.n_tokens, self.shards.held_out.n_tokens
        self.batch_tokens = config.batch // world.size * config.context
        self.matrices = matrix_shapes(self.model)
        self.flops_per_token = float(matrix_flops_per_token(self.matrices))

    @property
    def model(self) -> Decoder:
        return self.lm.model

    def steps_for(self, tokens: int) -> int:
        """As if no row had padding, or the end of a document, which nothing predicts."""
        config = self.config
        return -(-tokens // (config.batch * config.accumulate * config.context))

    def loss(self, rows: PackedBatch) -> Tensor:
        return self.compute.loss(self.model, rows)

    def evaluate(self) -> Evaluation | None:
        view, config, world = self.shards.held_out, self.config, self.world
        if not view.n_documents or not (view.lengths > 1).any():
            return None
        batches = packed_eval_batches(
            view, config.context, config.batch, config.eval_tokens,
            fill=config.compile, rank=world.rank, world_size=world.size,
        )  # fmt: skip
        return evaluate(self.model, batches, self.compute, world)

    def sample(self) -> str:
        """What continues the prompt, always with the same seed; it changes nothing in the training."""
        prompt, lm = self.config.sample_prompt, self.lm
        ids = lm.encode(prompt)
        room = min(self.config.sample_tokens, lm.config.context_length - len(ids))
        return prompt + lm.generate(ids, max_tokens=room, temperature=0.8, seed=self.config.seed).text

    def save(self, folder: Path) -> None:
        self.lm.save(folder)
