"""`glassformer bench`: its output, the sizes behind its shares, and errors without llama.cpp."""

import copy
import json
import sys
from importlib.util import find_spec

import gguf
import pytest
import torch
from generate.scripted import make_tokenizer
from tiny_gguf import gguf_model

from glassformer.cli import main
from glassformer.cli.bench import gguf_file
from glassformer.formats.checkpoint import open_checkpoint
from glassformer.generate.limits import CLOCKS, measure_limits
from glassformer.generate.llama_cpp_process import INTERPRETER_VARIABLE, save_without_tokenizer
from glassformer.generate.speed import OURS, Measurement, ModelSize, Timing, Workload, measure, our_run, workloads
from glassformer.kernels.native.library import load_library
from glassformer.kernels.native.ops import linear
from glassformer.models.language_model import LanguageModel

QUICK = ("--rounds", "2", "--new-tokens", "4", "--prompt-tokens", "5")


@pytest.fixture(scope="module")
def lm():
    tokenizer = make_tokenizer()
    tokenizer.config["chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return LanguageModel(gguf_model("qwen3", vocab_size=tokenizer.vocab_size, context_length=256), tokenizer)


@pytest.fixture(scope="module")
def path(lm, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "model.gguf"
    lm.save_gguf(path, "F32")
    return path


def bench(capfd, *arguments):
    capfd.readouterr()
    main(["bench", *map(str, arguments)])
    return capfd.readouterr().out


def bench_error(capfd, *arguments, status=1):
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["bench", *map(str, arguments)])
    assert stop.value.code == status
    return capfd.readouterr()


def test_json(capfd, path):
    found = json.loads(bench(capfd, path, *QUICK, "--batch", 1, "--batch", 3, "--prefill", 7, "--json"))
    assert [work["name"] for work in found["workloads"]] == ["decode", "decode, batch 3", "prefill 7"]
    assert [work["bound"] for work in found["workloads"]] == ["memory", "memory", "matrix"]
    for work, tokens in zip(found["workloads"], (4, 12, 7), strict=True):
        side = work["sides"][OURS]
        assert len(side["seconds"]) == 2
        low, high = sorted(tokens / seconds for seconds in side["seconds"])
        assert low <= side["tokens_per_second"] <= high
        assert side["share"] > 0
    assert {choice["what"] for choice in found["choices"]} >= {"device", "dtype", "attention", "linear"}
    assert found["cpu"]
    assert found["threads"] == torch.get_num_threads()
    assert found["compare"] is None
    assert min(found["limits"].values()) > 0
    assert found["chat"]["prompt_tokens"] >= 200
    assert len(found["chat"]["seconds"]) == 2


def test_text(capfd, path):
    shown = bench(capfd, path, *QUICK, "--batch", 2, "--prefill", 6)
    for part in ("decode, batch 2", "prefill 6", "% of memory", "% of matrix", "GB/s", "time to first token"):
        assert part in shown


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--batch", "0"], "batch must be"),
        (["--prefill", "-1"], "prefill must be"),
        (["--rounds", "0"], "rounds must be"),
        (["--new-tokens", "0"], "--new-tokens must be"),
        (["--prompt-tokens", "0"], "--prompt-tokens must be"),
    ],
)
def test_numbers_out_of_range(capfd, path, arguments, what):
    assert what in bench_error(capfd, path, *arguments).err


def test_cpu_clock_measures_one_thread(capfd, path):
    before = torch.get_num_threads()
    try:
        error = bench_error(capfd, path, "--clock", "cpu", "--threads", 2).err
        assert "--clock cpu measures one CPU thread, got 2 on cpu" in error
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("clock", CLOCKS)
def test_limits_are_rates(clock):
    limits = measure_limits(torch.device("cpu"), clock)
    assert 1e8 < limits.memory_rate < 1e13
    assert 1e8 < limits.matrix_rate < 1e15


def test_unknown_program(capfd, path):
    found = bench_error(capfd, path, "--compare", "abacus", status=2)
    assert "llama.cpp" in found.out + found.err


@pytest.mark.parametrize(
    ("interpreter", "what"),
    [
        ("no-such-python", "GLASSFORMER_LLAMA_CPP is 'no-such-python', which is not a program"),
        pytest.param(
            sys.executable, "has no llama-cpp-python: set GLASSFORMER_LLAMA_CPP",
            marks=pytest.mark.skipif(find_spec("llama_cpp") is not None, reason="llama-cpp-python is installed"),
        ),
        ("false", "llama.cpp cannot run"),
    ],
)  # fmt: skip
def test_interpreter_without_llama_cpp(capfd, monkeypatch, path, interpreter, what):
    monkeypatch.setenv(INTERPRETER_VARIABLE, interpreter)
    found = bench_error(capfd, path, *QUICK, "--compare", "llama.cpp", "--json")
    assert what in found.err
    assert "Traceback" not in found.err
    assert found.out == ""


def test_no_llama_cpp(capfd, monkeypatch, path):
    monkeypatch.delenv(INTERPRETER_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # `find_spec` then finds no package
    error = bench_error(capfd, path, *QUICK, "--compare", "llama.cpp").err
    assert "llama.cpp is not installed: pip install llama-cpp-python, or set GLASSFORMER_LLAMA_CPP" in error


def test_both_sides_run_the_same_weights(capfd, lm, path, tmp_path, monkeypatch):
    """A model in bfloat16 is exported in bfloat16, also if its activations are float32; quantized ones are rejected."""
    LanguageModel(copy.deepcopy(lm.model).bfloat16(), lm.tokenizer).save(tmp_path / "model")
    for dtype, kind in (("bfloat16", "BF16"), ("float16", "F16"), ("float32", "F32")):
        found = LanguageModel.load(tmp_path / "model", device="cpu", dtype=dtype)
        tensors = gguf.GGUFReader(gguf_file(found, tmp_path)).tensors
        assert {t.tensor_type.name for t in tensors if len(t.shape) > 1} == {kind}
    assert gguf_file(LanguageModel.load(path), tmp_path) == path
    monkeypatch.setenv(INTERPRETER_VARIABLE, sys.executable)
    for model in (path, tmp_path / "model"):
        error = bench_error(capfd, model, *QUICK, "--compare", "llama.cpp", "--quantize", "int8").err
        assert "llama.cpp cannot run these quantized matrices: compare a GGUF file" in error


def test_runs_generate_the_same_tokens(lm):
    prompts = Workload("", 6, 5, 2).prompts(lm.config.vocab_size)
    assert prompts == Workload("", 6, 5, 2).prompts(lm.config.vocab_size)
    timing = our_run(lm.model)(prompts, 5)
    options = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True}
    assert timing.ids == [list(lm.generate(prompt, **options).continuations[0].ids) for prompt in prompts]
    assert min(timing.prefill, timing.decode) > 0


def test_native_counters_are_those_of_a_step(lm):
    """A model whose head and layers each call a native operation once per forward pass: a product, and attention."""
    library = load_library()
    if library is None:
        pytest.skip("the native kernels are not built")
    model = copy.deepcopy(lm.model)
    weight = model.head.weight.detach()
    model.head.forward = lambda x: linear(x, weight)
    prompts = Workload("", 6, 5, 2).prompts(lm.config.vocab_size)
    n_calls = 1 + lm.config.n_layers
    assert our_run(model)(prompts, 5).native.calls == n_calls
    assert our_run(model)(prompts, 0).native.calls == n_calls
    assert our_run(model)(prompts, 5).ids == our_run(lm.model)(prompts, 5).ids


def test_implementations_are_interleaved():
    order = []

    def side(name, ids):
        def run(prompts, new_tokens):
            order.append(name)
            return Timing(1.0, 2.0 if name == OURS else 3.0, ids)

        return run

    sides = {OURS: side(OURS, [[1, 2, 3], [1, 2, 3]]), "other": side("other", [[1, 2, 4], [1, 2, 3]])}
    found = measure(Workload("decode", 4, 2, 2), sides, 100, rounds=3)
    assert order == [OURS, "other", "other", OURS] * 2
    assert found.seconds == {OURS: [2.0] * 3, "other": [3.0] * 3}
    assert found.equal_tokens == {"other": 5}
    assert found.ratio("other") == (1.5, 1.5, 1.5)
    assert found.tokens_per_second() == 2.0


def test_ratio_is_that_of_one_round():
    found = Measurement(Workload("prefill", 8), {OURS: [1.0, 2.0, 4.0], "other": [2.0, 2.0, 12.0]}, {"other": 1})
    assert found.ratio("other") == (2.0, 1.0, 3.0)
    assert found.tokens_per_second() == 4.0


def test_workloads_fit_the_context():
    found = workloads(100, prefill=(50, 99, 100), batch=(1, 8), prompt_tokens=32, new_tokens=32)
    assert [work.name for work in found] == ["decode", "decode, batch 8", "prefill 50", "prefill 99"]
    assert [work.name for work in workloads(64, prefill=(256,), batch=(1,), prompt_tokens=32, new_tokens=32)] == [
        "prefill 63"
    ]


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "llama"])
@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_0", "Q4_K_M"])
@pytest.mark.parametrize("tied", [True, False])
def test_model_size_is_that_of_the_file(tmp_path, family, kind, tied):
    """The bytes of all tensors, by the gguf package, without the tables of which a step reads a row."""
    model = gguf_model(family, tied_head=tied)
    save_without_tokenizer(model, tmp_path / "model.gguf", kind)
    tensors = gguf.GGUFReader(tmp_path / "model.gguf").tensors
    tables = {"position_embd.weight"} | ({"token_embd.weight"} if not tied else set())
    size = ModelSize.of(open_checkpoint(tmp_path / "model.gguf"))
    assert size.weight_bytes == sum(int(t.n_bytes) for t in tensors if t.name not in tables)
    blocks = sum(int(t.n_elements) for t in tensors if t.name.startswith("blk.") and len(t.shape) > 1)
    assert size.block_parameters == blocks
    work = Workload("decode", 6, 4, 2)
    a = model.config.layers[0].attention
    cached = 2 * 2 * 8 * sum(2 * a.n_kv_heads * a.head_dim for _ in model.config.layers)  # 8 tokens of 2 sequences
    assert size.memory_share(work, 20.0, 1e6) == pytest.approx((size.weight_bytes + cached) * 10 / 1e6)
    assert size.matrix_share(3.0, 1e6) == pytest.approx(6.0 * blocks / 1e6)


def test_file_without_tokenizer_opens(tmp_path, lm):
    save_without_tokenizer(lm.model, tmp_path / "model.gguf", "F32")
    found = LanguageModel.load(tmp_path / "model.gguf")
    assert found.tokenizer is None
    ids = torch.tensor([[1, 2, 3]])
    assert found.generate(ids[0], max_tokens=4, temperature=0.0).continuations[0].ids == (
        lm.generate(ids[0], max_tokens=4, temperature=0.0, ignore_eos=True).continuations[0].ids
    )
