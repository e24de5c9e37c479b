"""Loading: truncated, missing, unused and misshapen tensors are named, all in one message."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, assert_near, random_ids, run, tiny

from glassformer.errors import CheckpointError, ConfigError, GlassformerError
from glassformer.formats import load_decoder, save_model

KINDS = (*FAMILIES, "gpt_neox", "phi3", "stablelm")  # fused per head, fused, and one norm per head
MODELS = {family: tiny(family) for family in KINDS}


@pytest.fixture(params=KINDS)
def family(request):
    return request.param


@pytest.fixture
def folder(family, tmp_path):
    save_model(MODELS[family], tmp_path / "model")
    return tmp_path / "model"


def edit_tensors(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}))


@pytest.mark.parametrize("options", [{}, {"copy": True}, {"dtype": torch.bfloat16}, {"dtype": torch.float64}], ids=str)
def test_every_tensor_is_loaded_once(folder, family, options):
    model, loaded = MODELS[family], load_decoder(folder, **options)
    assert loaded.config == model.config
    assert not loaded.training
    ours = dict(loaded.named_parameters())
    for name, p in model.named_parameters():
        assert torch.equal(ours[name], p.to(options.get("dtype", p.dtype))), name
        assert ours[name].is_contiguous()
        assert ours[name].requires_grad
    assert len({p.data_ptr() for p in ours.values()}) == len(ours)
    assert not any(p.is_meta for p in [*loaded.parameters(), *loaded.buffers()])
    if "copy" in options:
        assert all(p.data_ptr() % 64 == 0 for p in ours.values()), "not aligned"
        assert all(p.untyped_storage().nbytes() == p.nbytes for p in ours.values()), "parameters share a storage"


def test_tensors_larger_than_a_chunk(folder, family, monkeypatch):
    """Chunks of one row and of several, with boundaries inside a fused qkv tensor."""
    for size in (1, 700, 5_000):
        monkeypatch.setattr("glassformer.formats.reader.CHUNK_BYTES", size)
        for name, p in load_decoder(folder, copy=True).named_parameters():
            assert torch.equal(p, MODELS[family].get_parameter(name)), name


def test_mapped_weights_survive_a_save_over_their_own_file(folder, family):
    model = load_decoder(folder)
    other = tiny(family, seed=5)
    save_model(other, folder)
    assert torch.equal(model.embed.weight, MODELS[family].embed.weight)
    assert torch.equal(load_decoder(folder).embed.weight, other.embed.weight)
    save_model(model, folder)
    assert torch.equal(load_decoder(folder).embed.weight, MODELS[family].embed.weight)


def test_training_a_copy_does_not_change_the_file(folder):
    model, before = load_decoder(folder, copy=True), (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert (folder / "model.safetensors").read_bytes() == before


def test_truncated_file_raises(folder):
    path = folder / "model.safetensors"
    whole, rng = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    cuts = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) - 1} | {
        rng.randrange(len(whole)) for _ in range(40)
    }
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is not a complete safetensors file"):
            load_decoder(folder)
    path.write_bytes(whole + b"more")
    with pytest.raises(CheckpointError, match="not a complete"):
        load_decoder(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        load_decoder(folder)


def test_damaged_header_loads_or_raises(folder):
    path = folder / "model.safetensors"
    whole, rng = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.randrange(header)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load_decoder(folder, copy=rng.random() < 0.5)
        except CheckpointError as error:
            assert str(folder) in str(error)  # noqa: PT017


def test_truncated_config_raises(folder):
    path = folder / "config.json"
    whole = path.read_bytes().rstrip()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
            load_decoder(folder)
    for invalid in (b"[]", b"3", b'"x"', b"null"):
        path.write_bytes(invalid)
        with pytest.raises(CheckpointError, match="must hold a JSON object"):
            load_decoder(folder)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(CheckpointError, match="is not UTF-8"):
        load_decoder(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"config\.json could not be read: No such file"):
        load_decoder(folder)


def test_one_error_lists_every_problem(folder):
    names = list(load_file(folder / "model.safetensors"))
    missing, short, flat, integer = names[0], names[1], names[2], names[3]

    def edit(tensors):
        del tensors[missing]
        tensors[short] = tensors[short][:-1]
        tensors[flat] = tensors[flat].flatten()[None]
        tensors[integer] = tensors[integer].to(torch.int32)
        tensors["model.something.else"] = torch.zeros(2)

    edit_tensors(folder, edit)
    with pytest.raises(CheckpointError) as error:
        load_decoder(folder)
    lines = str(error.value).splitlines()
    assert str(folder) in lines[0]
    for problem in (f"missing: {missing}", f"shape: {short} is ", f"shape: {flat} is ", f"type: {integer} is I32",
                 "not used: model.something.else"):  # fmt: skip
        assert sum(problem in line for line in lines) == 1, f"{problem!r} is not in {error.value}"
    assert len(lines) == 6


def test_shape_error_names_both_shapes(folder, family):
    key = "n_inner" if family == "gpt2" else "intermediate_size"
    edit_config(folder, **{key: 71})
    with pytest.raises(CheckpointError, match=r"shape: .* is \[.*72.*\], the config needs \[.*71.*\]"):
        load_decoder(folder)


def test_unknown_config_key_raises_unless_ignored(folder, family):
    edit_config(folder, rope_wobble=3, another=5)
    with pytest.raises(
        ConfigError, match=r"config\.json: keys this family does not understand: another, rope_wobble.*--ignore-key"
    ):
        load_decoder(folder)
    with pytest.raises(ConfigError, match=r"understand: another\."):
        load_decoder(folder, ignore_keys=("rope_wobble",))
    ids = random_ids(MODELS[family].config, 1, 5)
    assert torch.equal(run(load_decoder(folder, ignore_keys=("rope_wobble", "another")), ids), run(MODELS[family], ids))


def test_unsupported_quantization_raises(folder):
    edit_config(folder, quantization_config={"bits": 4})
    with pytest.raises(ConfigError, match="quantization_config"):
        load_decoder(folder)


@pytest.mark.parametrize("name", ["gpt3", "Qwen3", 7, None, "x" * 10_000])
@pytest.mark.parametrize("architectures", [..., ["OtherForCausalLM"], "llama"])
def test_unknown_model_type_names_the_family_with_the_same_keys(folder, family, name, architectures):
    """Not the one with a similar name."""
    edit_config(folder, model_type=name, architectures=architectures)
    with pytest.raises(ConfigError, match=f"the keys are most like those of '{family}'") as error:
        load_decoder(folder)
    assert len(str(error.value)) < 1000


def test_unknown_model_type_names_the_family_of_its_architecture(folder):
    edit_config(folder, model_type="mine", architectures=["Olmo2ForCausalLM"])
    with pytest.raises(ConfigError, match="unknown model_type 'mine'; the keys are most like those of 'olmo2'"):
        load_decoder(folder)


def test_missing_model_type_raises(folder):
    edit_config(folder, model_type=...)
    with pytest.raises(ConfigError, match=r"unknown model_type None.*Known: .*gpt2, .*qwen3, "):
        load_decoder(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_redundant_tied_head_must_equal_the_embedding(family, tmp_path):
    model = MODELS[family]
    save_model(model, tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update({"lm_head.weight": model.embed.weight.detach().clone()}))
    ids = random_ids(model.config, 1, 5)
    assert torch.equal(run(load_decoder(tmp_path), ids), run(model, ids))
    edit_tensors(tmp_path, lambda tensors: tensors["lm_head.weight"][3].mul_(1.001))
    with pytest.raises(CheckpointError, match=r"not used: lm_head\.weight"):
        load_decoder(tmp_path)


def test_unused_mask_buffers_are_ignored(tmp_path):
    """Old GPT-2 checkpoints hold each layer's causal mask."""
    save_model(MODELS["gpt2"], tmp_path)
    masks = {f"transformer.h.{i}.attn.{n}": torch.ones(1, 1, 4, 4) for i in range(3) for n in ("bias", "masked_bias")}
    edit_tensors(tmp_path, lambda tensors: tensors.update(masks))
    load_decoder(tmp_path)


@pytest.mark.parametrize(("family", "buffers"), [
    ("llama", ["model.layers.{}.self_attn.rotary_emb.inv_freq"]),
    ("phi3", ["model.layers.{}.self_attn.rotary_emb.inv_freq"]),
    ("gpt_neox", [f"gpt_neox.layers.{{}}.attention.{n}" for n in ("bias", "masked_bias", "rotary_emb.inv_freq")]),
])  # fmt: skip
def test_unused_buffers_of_old_checkpoints_are_ignored(family, buffers, tmp_path):
    save_model(MODELS[family], tmp_path)
    extra = {name.format(i): torch.ones(4) for name in buffers for i in range(3)}
    edit_tensors(tmp_path, lambda tensors: tensors.update(extra))
    load_decoder(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update({"model.layers.0.self_attn.other": torch.ones(4)}))
    with pytest.raises(CheckpointError, match=r"not used: model\.layers\.0\.self_attn\.other"):
        load_decoder(tmp_path)


class Shards:
    """A checkpoint split into two files and an index."""

    def __init__(self, folder):
        self.folder, tensors = folder, load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = list(tensors)
        self.files = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
        for file, part in self.files.items():
            save_file({name: tensors[name] for name in part}, folder / file)
        self.index({name: file for file, part in self.files.items() for name in part})

    def index(self, weight_map):
        (self.folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )


def test_shards(folder, family):
    Shards(folder)
    ids = random_ids(MODELS[family].config, 1, 9)
    for copy in (False, True):
        assert torch.equal(run(load_decoder(folder, copy=copy), ids), run(MODELS[family], ids))
    (folder / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"two\.safetensors is missing"):
        load_decoder(folder)


def test_tensor_in_two_shards_raises(folder):
    shards = Shards(folder)
    name = shards.files["one.safetensors"][0]
    both = load_file(folder / "two.safetensors") | {name: torch.zeros(3)}
    save_file(both, folder / "two.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name} is in one\.safetensors and in two\.safetensors"):
        load_decoder(folder)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "[", '{"weight_map": {}}'])
def test_damaged_index_raises(folder, index):
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(GlassformerError, match=str(folder)):
        load_decoder(folder)


@pytest.mark.parametrize("family", ["olmo", "gemma2", "mixtral", "gpt2"])  # clip, softcap, experts, positions
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_first_forward_pass_names_weights_that_are_not_finite(family, value, tmp_path):
    """One damaged number in any tensor, whether it changes the logits or not."""
    model = tiny(family)
    ids = random_ids(model.config, 1, 5)
    for name, p in model.named_parameters():
        before = p.data.flatten()[-1].item()
        p.data.view(-1)[-1] = value
        save_model(model, tmp_path)
        p.data.view(-1)[-1] = before
        loaded = load_decoder(tmp_path)
        for _ in range(2):  # a caught error does not make the weights valid
            with pytest.raises(CheckpointError, match=rf"{tmp_path}: weights are NaN or infinite, .* float32: {name}$"):
                run(loaded, ids)
    save_model(model, tmp_path)
    loaded = load_decoder(tmp_path)
    assert_near(run(loaded, ids), run(model, ids))
    assert not any(module._forward_pre_hooks for module in loaded.modules()), "the check runs again"


def test_numbers_too_large_for_the_dtype_raise(tmp_path):
    model = tiny("llama")
    model.norm.weight.data[0] = 1e5
    save_model(model, tmp_path)
    run(load_decoder(tmp_path, dtype=torch.bfloat16), random_ids(model.config, 1, 5))
    with pytest.raises(CheckpointError, match=r"too large for float16: norm\.weight$"):
        run(load_decoder(tmp_path, dtype=torch.float16), random_ids(model.config, 1, 5))
