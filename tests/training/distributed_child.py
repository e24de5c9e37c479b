"""One process of test_distributed: trains with each optimizer and records the sequences it processed."""

import hashlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_runs import tiny_run
from tiny_seq2seq import RECURRENT, seq2seq_run

from glassformer.training.config import OptimConfig
from glassformer.training.data.packing import PackedLoader

STEPS, BATCH = 20, 4


def runs() -> dict[str, dict]:
    """Return the settings of each run, all in float32."""
    common = {"steps": STEPS, "batch": BATCH, "eval_every": 10, "save_every": 10}
    return {
        "adamw": common | {"optim": OptimConfig(name="adamw")},
        "muon": common | {"optim": OptimConfig(muon_dtype="float32"), "accumulate": 2},
    }


def seq2seq_runs() -> dict[str, dict]:
    """Return the settings of each seq2seq run. 7 of 8 held-out examples are generated, so one rank pads its batch."""
    common = {"steps": STEPS, "batch": BATCH, "eval_every": 10, "save_every": 10, "exact_match_examples": 7}
    return {"pairs": common | {"accumulate": 2, "label_smoothing": 0.1}, "recurrent": common | {"model": RECURRENT}}


def main() -> None:
    out, tokenizer = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")  # once, for both runs
    sequences: list[tuple[str, int]] = []
    load_next = PackedLoader.next

    def record_next(self: PackedLoader):
        rows = load_next(self)
        digests = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in rows.ids]
        counts = (rows.targets != -100).sum(1).tolist()
        sequences.extend(zip(digests, counts, strict=True))
        return rows

    PackedLoader.next = record_next
    for name, settings in runs().items():
        sequences.clear()
        tiny_run(out / name, tokenizer, **settings)
        (out / f"{name}-{dist.get_rank()}.json").write_text(json.dumps(sequences))
    for name, settings in seq2seq_runs().items():
        seq2seq_run(out / name, **settings)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
