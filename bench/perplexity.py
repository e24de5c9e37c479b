"""Measure what quantization costs: the perplexity of the packaged model `stories` on held-out stories, per format.

    python bench/perplexity.py [--documents 300]

`decoded` multiplies float32 activations by the decoded weights: the error of the weights alone. `packed` is how the
model runs by default on a CPU with native kernels: activations are quantized to 8 bits, too. The rows of most matrices
of `stories` have 128 weights, so Q6_K and Q4_K_M store them as Q8_0 and Q5_0; see the column of types.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from compare import table
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from glassformer.formats.gguf.header import read_header
from glassformer.formats.save import GgufKind
from glassformer.kernels.packed_linear import ModelWeights, packed_modules
from glassformer.kernels.placement import Quantize
from glassformer.models.language_model import LanguageModel
from glassformer.toys.stories_recipe import held_out_documents

FILES: tuple[GgufKind, ...] = ("Q8_0", "Q6_K", "Q4_K_M", "Q4_0")
AT_LOAD: tuple[Quantize, ...] = ("int8", "int4")
MODEL = "stories"


def perplexity(lm: LanguageModel, documents: Sequence[str]) -> float:
    """Return the perplexity per token of documents, each from its second token to the end of the context."""
    loss = predicted = 0.0
    for document in documents:
        score = lm.score(lm.encode(document)[: lm.config.context_length])
        loss, predicted = loss - score.logprob, predicted + len(score.tokens) - 1
    return math.exp(loss / predicted)


def quantized_file(kind: GgufKind, path: Path) -> tuple[LanguageModel, str, float]:
    """Return the model of a file, the types of its matrices, and their bits per weight."""
    LanguageModel.load(MODEL, device="cpu").save_gguf(path, kind)
    matrices = [info for info in read_header(path).tensors.values() if info.type != "F32"]
    sizes = {one: n_bytes / n for one, (n, n_bytes) in ((k, GGML_QUANT_SIZES[k]) for k in GGMLQuantizationType)}
    numbers = [(math.prod(info.shape), 8 * sizes[GGMLQuantizationType[info.type]]) for info in matrices]
    types = Counter(info.type for info in matrices)
    bits = sum(n * bits for n, bits in numbers) / sum(n for n, _ in numbers)
    return LanguageModel.load(path, device="cpu"), ", ".join(f"{n} {kind}" for kind, n in types.most_common()), bits


def quantized_at_load(kind: Quantize) -> tuple[LanguageModel, str, float]:
    """As `quantized_file`, without a file."""
    lm = LanguageModel.load(MODEL, quantize=kind)
    assert lm.quantization is not None
    types = Counter(one.format for one in lm.quantization.matrices)
    return lm, ", ".join(f"{n} {kind}" for kind, n in types.most_common()), lm.quantization.bits_per_weight


@torch.no_grad()
def decoded(lm: LanguageModel) -> LanguageModel:
    """Return the model in float32 with the decoded weights of a quantized one."""
    plain = LanguageModel.load(MODEL, device="cpu")
    for name, weight in ModelWeights(lm.model).items():
        plain.model.get_parameter(name).copy_(weight)
    return plain


def relative_error(lm: LanguageModel, original: LanguageModel) -> float:
    """Return the root-mean-square difference of all matrices, divided by that of the original weights."""
    squares = torch.zeros(2, dtype=torch.float64)
    for name, p in original.model.named_parameters():
        if p.ndim == 2:
            squares += torch.stack([(lm.model.get_parameter(name) - p).square().sum(), p.square().sum()]).detach()
    return math.sqrt(squares[0] / squares[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=300, help="how many held-out stories")
    args = parser.parse_args()
    documents, original = list(held_out_documents(args.documents)), LanguageModel.load(MODEL, device="cpu")
    reference = perplexity(original, documents)
    n = sum(min(len(original.encode(one)), original.config.context_length) - 1 for one in documents)
    print(f"{MODEL}: {n:,} predicted tokens of {len(documents)} held-out stories\n")

    def shown(lm: LanguageModel) -> str:
        value = perplexity(lm, documents)
        return f"{value:.4f} ({100 * (value / reference - 1):+.2f}%)"

    rows = [["float32", "F32", "32.0", "0", f"{reference:.4f}", ""]]
    with tempfile.TemporaryDirectory() as folder:
        for kind in (*FILES, *AT_LOAD):
            path = Path(folder) / f"{kind}.gguf"
            lm, types, bits = quantized_at_load(kind) if kind in AT_LOAD else quantized_file(kind, path)
            plain = decoded(lm)
            packed = shown(lm) if any(packed_modules(lm.model)) else "decoded at load"
            error = f"{100 * relative_error(plain, original):.2f}%"
            rows.append([kind, types, f"{bits:.1f}", error, shown(plain), packed])
    print(table(["format", "types of matrices", "bits per weight", "relative error", "decoded", "packed"], rows))


if __name__ == "__main__":
    main()
