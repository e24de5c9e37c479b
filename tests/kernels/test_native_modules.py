"""Models on the native kernels: one program computes the same bits as module after module, and both equal PyTorch."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.utils.parametrize as parametrize
from native_levels import at_each_level, same_bits
from tiny import (
    ENCODER_DECODERS,
    encode_source,
    random_ids,
    randomise_sharp,
    run,
    tiny,
    tiny_config,
    tiny_encoder_decoder,
)
from tiny_encoders import CONFIGS as ENCODERS
from tiny_encoders import tiny_encoder
from tiny_families import CONFIGS
from torch import nn

import glassformer
from glassformer.cache.dense import DenseCache
from glassformer.config import NormConfig, change
from glassformer.kernels.memory import HUGE_PAGE, HUGE_PAGES
from glassformer.kernels.native import modules, program
from glassformer.kernels.native.attention import attend_native
from glassformer.kernels.native.library import load_library
from glassformer.kernels.native.modules import NativeLinear, use_native
from glassformer.kernels.native.program import Program, unsupported
from glassformer.models.language_model import LanguageModel
from glassformer.nn.attend import attend_sdpa
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step

pytestmark = pytest.mark.skipif(load_library() is None, reason="the native kernels are not built")
N_TOKENS = 20


class Blind:
    """A tap that wants no point: with it, modules run and no program does."""

    def wants(self, name):
        return False

    def __call__(self, name, value):
        raise AssertionError("it wants no point")


@pytest.fixture
def program_runs(monkeypatch):
    """For each call of a program, whether it ran the forward pass."""
    ran = []
    original = Program.run

    def counting(self, x, step):
        out = original(self, x, step)
        ran.append(out is not None)
        return out

    monkeypatch.setattr(Program, "run", counting)
    return ran


@torch.inference_mode()
def forward(model, ids, size, tap=None, lengths=None):
    """Return the logits of `ids`, `size` tokens per forward pass; of the first `lengths` tokens of each sequence."""
    lengths = lengths or [ids.shape[1]] * len(ids)
    cache, parts = DenseCache.of(model.config, len(ids), ids.shape[1]), []
    for begin in range(0, ids.shape[1], size):
        counts = [min(max(n - begin, 0), size, ids.shape[1] - begin) for n in lengths]
        part = ids[:, begin : begin + max(counts)]
        parts.append(model(part, Step(cache.extend(counts), cache=cache, attend=attend_native, tap=tap)))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_program_has_the_bits_of_the_modules(name, program_runs):
    model = tiny(name)
    ids = random_ids(model.config, 2, N_TOKENS)
    want = run(model, ids)
    use_native(model)
    first = forward(model, ids, N_TOKENS)
    assert (first - want).abs().max() <= 1e-5 * want.abs().max()
    for size in (N_TOKENS, 1, 7):
        for tap in (None, Blind()):
            found = forward(model, ids, size, tap)
            if model.config.layers[0].attention.latent is None:  # PyTorch multiplies the matrices of latents
                assert torch.equal(found, first), (size, tap)
    assert any(program_runs) == (unsupported(model) is None)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_weights_with_float32_activations(name, dtype):
    """The result is that of float32 arithmetic on the rounded weights."""
    model = tiny(name).to(dtype)
    ids = random_ids(model.config, 2, N_TOKENS)
    want = run(copy.deepcopy(model).float(), ids)
    use_native(model)
    found = forward(model, ids, 6)
    assert model.blocks[0].mlp.up.weight.dtype == dtype
    assert found.dtype == torch.float32
    assert (found - want).abs().max() <= 1e-5 * want.abs().max()


def test_sequences_of_different_lengths(program_runs):
    """A sequence has the same bits alone and in a batch."""
    model = tiny("qwen3")
    use_native(model)
    ids = random_ids(model.config, 3, N_TOKENS)
    lengths = [20, 11, 3]
    together = forward(model, ids, 8, lengths=lengths)
    for row, n in enumerate(lengths):
        assert torch.equal(forward(model, ids[row : row + 1, :n], 8)[0], together[row, :n])
    assert any(program_runs)


def test_levels_compute_the_same_bits():
    model = tiny("llama")
    use_native(model)
    ids = random_ids(model.config, 2, N_TOKENS)
    same_bits(at_each_level(lambda: forward(model, ids, 6)))


def test_taps_gradients_hooks_and_other_attention_use_the_modules(program_runs):
    model = tiny("llama")
    use_native(model)
    ids = random_ids(model.config, 1, 5)
    with torch.inference_mode():
        model(ids, Step.of(ids, attend=attend_native))  # no cache
        cache = DenseCache.of(model.config, 1, 5)
        model(ids, Step(cache.extend([5]), cache=cache, attend=attend_sdpa))
    cache = DenseCache.of(model.config, 1, 5)
    model(ids, Step(cache.extend([5]), cache=cache, attend=attend_native)).sum().backward()
    assert model.blocks[0].mlp.up.weight.grad is not None
    assert not program_runs
    seen = []
    hook = model.blocks[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    want = forward(model, ids, 5)
    assert seen
    assert not any(program_runs)
    hook.remove()
    assert torch.equal(forward(model, ids, 5), want)
    assert any(program_runs)


def test_replaced_weights_and_modules_are_noticed():
    model = tiny("llama")
    use_native(model)
    ids = random_ids(model.config, 1, 5)
    before = forward(model, ids, 5)
    weight = model.blocks[0].mlp.up.weight
    weight.data = weight.data * 2
    changed = forward(model, ids, 5)
    assert torch.equal(changed, forward(model, ids, 5, Blind()))
    assert not torch.equal(changed, before)
    other = tiny("llama", seed=1)
    use_native(other)
    model.blocks[1].mlp = other.blocks[1].mlp
    replaced = forward(model, ids, 5)
    assert torch.equal(replaced, forward(model, ids, 5, Blind()))
    assert not torch.equal(replaced, changed)
    with torch.no_grad():
        model.blocks[0].attn.o.weight.mul_(3)  # in place: the same memory
    assert torch.equal(forward(model, ids, 5), forward(model, ids, 5, Blind()))


class Doubled(nn.Linear):
    """Twice the product: a subclass with the parameters of `nn.Linear`."""

    def forward(self, x):
        return 2 * super().forward(x)


class Twice(nn.Module):
    """Twice another module, or as a parametrization twice a weight."""

    def __init__(self, inner=None):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * (x if self.inner is None else self.inner(x))


def replace_up(make):
    """Return a change of a model: `make` returns the module in place of the up-projection of block 0."""

    def change_model(model):
        model.blocks[0].mlp.up = make(model.blocks[0].mlp.up)

    return change_model


def doubled(up):
    twin = Doubled(up.in_features, up.out_features, bias=up.bias is not None)
    twin.weight, twin.bias = up.weight, up.bias
    return twin


def override_forward(model):
    up = model.blocks[0].mlp.up
    up.forward = lambda x, forward=up.forward: 2 * forward(x)


def parametrize_up(model):
    parametrize.register_parametrization(model.blocks[0].mlp.up, "weight", Twice())


def set_bias(model, bias):
    model.blocks[0].mlp.up.bias = bias


def double_data(model):
    model.blocks[0].mlp.up.weight.data = model.blocks[0].mlp.up.weight.data * 2


def transpose_layout(model):
    weight = model.blocks[0].attn.o.weight
    weight.data = weight.data.T.contiguous().T


CHANGES = {
    "data": double_data,
    "other layout": transpose_layout,
    "hook": lambda model: model.blocks[1].register_forward_hook(lambda _module, _input, output: 2 * output),
    "subclass": replace_up(doubled),
    "wrapper": replace_up(Twice),
    "forward": override_forward,
    "parametrization": parametrize_up,
    "no bias": lambda model: set_bias(model, None),
    "bias": lambda model: set_bias(model, nn.Parameter(torch.ones(model.blocks[0].mlp.config.d_ff))),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
    "one float16 norm": lambda model: model.blocks[0].attn_norm.half(),
}


@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_changes_between_forward_passes_of_one_cache(name, program_runs):
    """A change takes effect with the next token, as it does without a program."""
    found = []
    for tap in (None, Blind()):
        model = tiny("gpt2")
        use_native(model)
        ids, cache = random_ids(model.config, 1, 3), DenseCache.of(model.config, 1, 3)
        for i in range(3):
            step = Step(cache.extend([1]), cache=cache, attend=attend_native, tap=tap)
            found.append(model(ids[:, i : i + 1], step))
            if i == 1:
                CHANGES[name](model)
    assert program_runs[0]
    assert all(torch.equal(a, b) for a, b in zip(found[:3], found[3:], strict=True))


def test_copies_have_their_own_programs():
    model = tiny("llama")
    use_native(model)
    ids = random_ids(model.config, 1, 5)
    want = forward(model, ids, 5)
    twin = copy.deepcopy(model)
    twin.blocks[0].mlp.up.weight.data.zero_()
    assert torch.equal(forward(model, ids, 5), want)
    assert not torch.equal(forward(twin, ids, 5), want)


def test_programs_do_not_accumulate():
    model = tiny("llama")
    use_native(model)
    for n in range(1, 9):
        forward(model, random_ids(model.config, 1, n), n)
    assert len(model.programs.by_shape) == program.MAX_PROGRAMS
    for rows in (program.MAX_ROWS // 3, program.MAX_ROWS // 2):
        forward(model, random_ids(model.config, rows, 2), 2)
    assert list(model.programs.by_shape) == [(program.MAX_ROWS // 2, 2)]


def test_loaded_models_run_natively_where_it_is_faster(tmp_path, monkeypatch):
    LanguageModel(tiny("llama"), None).save(tmp_path)
    for features, native in ((frozenset(), True), (frozenset({"avx512f"}), False)):
        monkeypatch.setattr(modules, "cpu_features", lambda features=features: features)
        lm = glassformer.load(tmp_path, device="cpu", dtype="float32")
        assert isinstance(lm.model.blocks[0].mlp.up, NativeLinear) == native
        linear = next(choice for choice in lm.choices if choice.what == "linear")
        assert (linear.value == "native") == native


def test_huge_pages_give_separate_memory():
    parts = [HUGE_PAGES.empty(n) for n in (0, 1, 100, 3 * HUGE_PAGE, 64 * HUGE_PAGE, 5)]
    for i, part in enumerate(parts):
        assert part.data_ptr() % 64 == 0
        assert part.untyped_storage().nbytes() == len(part) or not len(part)
        part.fill_(i)
    assert all(bool((part == i).all()) for i, part in enumerate(parts))


RMS = NormConfig("rms", 1e-5)
VARIANTS = {
    "no final norm": {"final_norm": None},
    "after the sum": {"layers.*.norm_at": ("post",), "final_norm": None},
    "before and after each layer": {"layers.*.norm_at": ("pre", "out")},
    "parallel, two norms": {"layers.*.parallel": True},
    "parallel, one norm": {"layers.*.parallel": True, "layers.*.shared_norm": True},
    "query and key norms over heads": {"layers.*.attention.qk_norm": RMS, "layers.*.attention.qk_norm_over": "width"},
    "a norm for each head": {"layers.*.attention.qk_norm": RMS, "layers.*.attention.qk_norm_over": "each"},
    "softcap, sinks and a window": {
        "layers.*.attention.softcap": 20.0, "layers.*.attention.sinks": True, "layers.1.attention.window": 4
    },
    "limited gates": {"layers.*.mlp.limit": 0.5, "layers.*.mlp.up_plus_one": True},
    "not gated, biases": {"layers.*.mlp.gated": False, "layers.*.mlp.bias": True, "layers.*.attention.bias": True},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_program_of_other_blocks(name, program_runs):
    config = tiny_config("llama")
    for path, value in VARIANTS[name].items():
        for i in range(config.n_layers):
            config = change(config, path.replace("*", str(i)), value)
    model = randomise_sharp(Decoder(config))
    ids = random_ids(config, 2, N_TOKENS)
    want = run(model, ids)
    use_native(model)
    found = forward(model, ids, N_TOKENS)
    assert (found - want).abs().max() <= 1e-5 * want.abs().max()
    for size in (1, 7):
        assert torch.equal(forward(model, ids, size), found)
        assert torch.equal(forward(model, ids, size, Blind()), found)
    assert any(program_runs) == (name != "a norm for each head")


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_program_of_packed_matrices(quantize, program_runs, tmp_path):
    config = replace(tiny_config("llama"), d_model=64)
    for i in range(config.n_layers):
        config = change(config, f"layers.{i}.mlp.d_ff", 96)
        config = change(config, f"layers.{i}.attention.head_dim", 16)
    LanguageModel(randomise_sharp(Decoder(config)), None).save(tmp_path)
    model = glassformer.load(tmp_path, device="cpu", quantize=quantize).model
    ids = random_ids(config, 2, N_TOKENS)
    found = forward(model, ids, N_TOKENS)
    for size in (1, 7):
        assert torch.equal(forward(model, ids, size), found)
        assert torch.equal(forward(model, ids, size, Blind()), found)
    assert program_runs == [True] * (1 + 20 + 3)  # forward passes of 20, 1 and 7 tokens


@pytest.mark.parametrize("name", [*ENCODER_DECODERS, *ENCODERS])
def test_half_precision_encoders_with_float32_activations(name):
    model = (tiny_encoder if name in ENCODERS else tiny_encoder_decoder)(name).bfloat16()
    wide = copy.deepcopy(model).float()
    use_native(model)
    ids = random_ids(model.config, 2, 9)
    results = []
    for one in (model, wide):
        with torch.inference_mode():
            if name in ENCODERS:
                results.append(one(ids, Step.of(ids, (9, 5))))
            else:
                source = encode_source(one, random_ids(one.encoder.config, 2, 8), (8, 3))
                results.append(one(ids, Step.of(ids, source=source)))
    assert (results[0] - results[1]).abs().max() <= 1e-5 * results[1].abs().max()
