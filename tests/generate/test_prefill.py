"""Prefill in chunks equals one forward pass, and its memory is not quadratic in the text length."""

import pytest
import torch
from inspect_subjects import translator
from tiny import TOLERANCE, encoder_decoder_config, random_ids, run, tiny
from tiny_families import DECODERS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glassformer.generate import prefill
from glassformer.generate.prefill import chunk_size, run_chunks
from glassformer.inspect.edits.edit import ablate, replace, scale
from glassformer.inspect.views import cache, layer
from glassformer.models.language_model import LanguageModel
from glassformer.nn.step import Step

N = 41  # tokens: more than each window, and than phi3's long_text


@torch.no_grad()
def chunked_logits(model, ids, size, **options):
    return torch.cat([model.logits(hidden, step) for step, hidden in run_chunks(model, ids, size=size, **options)], 1)


@pytest.mark.parametrize("size", [1, 3, 7, 16, 40])
@pytest.mark.parametrize("family", DECODERS)
def test_chunks_equal_one_forward_pass(family, size):
    model = tiny(family)
    ids = random_ids(model.config, 2, N, 5)
    expected = run(model, ids)
    actual = chunked_logits(model, ids, size)
    assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("size", [1, 4, 11])
@pytest.mark.parametrize("name", ["pre", "rms", "t5"])
def test_chunks_of_a_target_equal_one_forward_pass(name, size):
    from tiny_translators import CONFIGS

    model = translator(CONFIGS["t5"]() if name == "t5" else encoder_decoder_config(name)).model
    ids, sources = random_ids(model.config, 2, 17, 5), random_ids(model.config, 2, 23, 6)
    with torch.no_grad():
        source = model.encode(sources, Step.of(sources))
        expected = model(ids, Step.of(ids, source=source))
    actual = chunked_logits(model, ids, size, source=source)
    assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("family", DECODERS)
def test_score_and_trace_do_not_depend_on_chunks(family, monkeypatch):
    """Captured and recomputed points, edits of every kind, and the logits."""
    lm = LanguageModel(tiny(family))
    ids = random_ids(lm.config, 1, N, 5)[0].tolist()
    edits = [scale("blocks.1.mlp.out", 0.5, position=(30, 2)), replace("embed.out", torch.ones(48), position=-1)]
    if "deepseek" not in family:
        edits += [ablate("blocks.1.attn.probs", head=1, query=(3, 33)), scale("blocks.0.attn.v", 2.0, position=9)]
    for edit in ([], edits):
        monkeypatch.setattr(prefill, "PREFILL_CHUNK", 512)
        expected, expected_trace = lm.score(ids, edit=edit), lm.trace(ids, edit=edit, capture="final.logits")
        names = [name for name in expected_trace.names() if not name.endswith("positions")]
        values = {name: expected_trace[name].tensor for name in names}
        monkeypatch.setattr(prefill, "PREFILL_CHUNK", 6)
        actual, t = lm.score(ids, edit=edit), lm.trace(ids, edit=edit, capture="final.logits")
        size = values["final.logits"].abs().max().item()
        for a, b in zip(actual.tokens[1:], expected.tokens[1:], strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-5 * size + 1e-5), family
        for name in names:
            expected_value = values[name]
            finite = expected_value.isfinite()
            value = t[name]
            assert torch.equal(value.tensor.isfinite(), finite), name
            assert (value.tensor - expected_value)[finite].abs().max() <= 1e-4 * expected_value[
                finite
            ].abs().max() + 1e-5, name
            assert value.error < 1e-3, (name, value)


# ---- interruption


@pytest.mark.parametrize("method", ["score", "trace"])
def test_each_chunk_can_be_interrupted(method, monkeypatch):
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", 10)
    lm, calls = LanguageModel(tiny("qwen3")), []
    ids = random_ids(lm.config, 1, N, 5)[0].tolist()
    getattr(lm, method)(ids, before_forward=lambda: calls.append(1))
    assert len(calls) == 5

    def interrupt():
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    calls.clear()
    chunk_sizes = []
    hook = lm.model.blocks[0].register_forward_pre_hook(lambda _m, args: chunk_sizes.append(args[0].shape[1]))
    with pytest.raises(InterruptedError):
        getattr(lm, method)(ids, before_forward=interrupt)
    hook.remove()
    assert chunk_sizes == [10, 10]


# ---- memory


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements of any tensor that an operation creates, and the operation."""

    def __init__(self):
        super().__init__()
        self.size, self.made_by = 0, ""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.numel() > self.size
                and tensor.untyped_storage().nbytes() > 0
            ):
                stored = tensor.untyped_storage().nbytes() // tensor.element_size()  # an expanded tensor stores less
                if min(tensor.numel(), stored) > self.size:
                    self.size, self.made_by = min(tensor.numel(), stored), str(function)
        return result


LONG = 1024
FAMILIES = ("mistral", "gemma2", "gemma3_text", "qwen3", "gpt_oss", "smollm3", "phi3", "gpt2", "deepseek_v2", "mixtral")


def long_model(family, monkeypatch):
    """A model with a context of LONG tokens, processed in chunks of 32."""
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", 32)
    lm = LanguageModel(tiny(family, context_length=LONG))
    return lm, random_ids(lm.config, 1, LONG, 5)[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_tensor_is_quadratic_in_the_text_length(family, monkeypatch):
    """Scoring, tracing, recomputing, views and sweeps store no scores or masks of all queries and keys."""
    lm, ids = long_model(family, monkeypatch)
    bound = LONG * LONG // 2  # a mask of all pairs has twice as many elements, scores of 4 heads 8 times
    with LargestTensor() as score:
        lm.score(ids)
    assert score.size < bound, score.made_by
    with LargestTensor() as trace:
        t = lm.trace(ids)
    assert trace.size < bound, trace.made_by
    with LargestTensor() as recomputed:
        for name in ("blocks.1.attn.q", "blocks.0.attn.z", "blocks.1.mlp.out", "blocks.0.resid_post"):
            assert name not in t.names() or t[name].error < 1e-3
        t.rows("blocks.0.attn.probs", head=1, query=[3, 900])
    if family != "gpt2" and "deepseek" not in family:  # PyTorch's causal product needs no mask
        assert recomputed.size < bound, recomputed.made_by
    monkeypatch.setattr(layer, "MAX_PATTERN_BYTES", 1 << 20)
    monkeypatch.setattr(cache, "MAX_SCORES", 1 << 17)
    with LargestTensor() as viewed:
        t.grid(layer=0)
        t.cache(layer=0)
    if family != "gpt2" and "deepseek" not in family:
        assert viewed.size < bound, viewed.made_by
    with LargestTensor() as swept:
        next(iter(lm.sweep(t, over="heads")))
    assert swept.size < bound, swept.made_by


def test_largest_tensor_detects_quadratic_memory(monkeypatch):
    """With one chunk, each of these families stores a mask or scores of all query-key pairs."""
    for family in ("mistral", "gemma2", "gpt_oss"):
        lm, ids = long_model(family, monkeypatch)
        monkeypatch.setattr(prefill, "PREFILL_CHUNK", LONG)
        with LargestTensor() as largest:
            lm.score(ids)
        assert largest.size >= LONG * LONG, family


def test_memory_of_scores_limits_the_chunk_size():
    """At 32 heads and 32,768 keys, 16 queries: 64 MB of scores."""
    softcapped = tiny("gemma2").config
    assert chunk_size(softcapped, 100) == 512
    heads = softcapped.layers[0].attention.n_heads
    for n_keys in (1 << 14, 1 << 16, 1 << 20, 1 << 24):
        size = chunk_size(softcapped, n_keys)
        assert 1 <= size <= 512
        assert size * heads * n_keys <= max(prefill.MAX_SCORES, heads * n_keys)
    plain = tiny("llama").config
    assert chunk_size(plain, 1 << 20) == 512
    assert chunk_size(plain, 1 << 20, edits_scores=True) == 4
