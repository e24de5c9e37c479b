"""Folders and files as other programs name their tensors and files, compared with `transformers`."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import assert_near, random_ids, run, tiny
from tiny_families import DECODERS

from glassformer.errors import CheckpointError, ConfigError
from glassformer.formats import find_model, load_decoder, open_checkpoint, save_model
from glassformer.formats.gguf.header import read_header
from glassformer.formats.gguf.save import save_gguf
from glassformer.models.load import load

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
from cases import HF_CONFIGS
from hf_models import hf_random

WEIGHTS = "model.safetensors"


def edit_tensors(folder, edit):
    """Replace a folder's tensors by `edit(tensors)`."""
    tensors = edit(load_file(folder / WEIGHTS))
    save_file({name: t.clone() for name, t in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def edit_config(folder, **keys):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | keys))


@torch.no_grad()
def hf_logits(folder, ids):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits


@pytest.mark.parametrize("family", DECODERS)
def test_base_model_of_every_family_opens(family, tmp_path):
    """`AutoModel` saves names without the prefix and no head; with a tied head nothing is missing."""
    config = HF_CONFIGS[family]()
    config.tie_word_embeddings = True
    hf_random(transformers.AutoModel.from_config(config)).save_pretrained(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    names = list(load_file(tmp_path / WEIGHTS))
    assert not [name for name in names if name.startswith(("model.", "transformer.", "gpt_neox.", "lm_head."))]
    if family == "phi":  # its head has a bias
        with pytest.raises(ConfigError, match=r"tie_word_embeddings = True is not supported"):
            load_decoder(tmp_path)
        return
    model = load_decoder(tmp_path)
    ids = random_ids(model.config, 2, 40)
    assert_near(run(model, ids), hf_logits(tmp_path, ids))


def test_base_model_with_a_head_of_its_own_raises(tmp_path):
    save_model(tiny("llama", tied_head=False), tmp_path)
    bare = {"lm_head.weight": None}
    edit_tensors(tmp_path, lambda ts: {name.removeprefix("model."): t for name, t in ts.items() if name not in bare})
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight .*\n .*saved from a base model, which has no"):
        load_decoder(tmp_path)


def test_tied_model_with_only_its_head_opens(tmp_path):
    model = tiny("llama")
    save_model(model, tmp_path)
    embed = "model.embed_tokens.weight"
    edit_tensors(tmp_path, lambda ts: {"lm_head.weight" if name == embed else name: t for name, t in ts.items()})
    assert torch.equal(load_decoder(tmp_path).embed.weight, model.embed.weight)
    edit_config(tmp_path, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"missing: model\.embed_tokens\.weight"):
        load_decoder(tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral", "olmo2"])
def test_rotary_angles_and_a_value_head_are_not_read(family, tmp_path):
    model = tiny(family)
    save_model(model, tmp_path)
    extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(3) for i in range(3)}
    extra |= {"model.rotary_emb.inv_freq": torch.ones(3), "v_head.summary.weight": torch.ones(1, 48)}
    extra["v_head.summary.bias"] = torch.ones(1)
    edit_tensors(tmp_path, lambda tensors: tensors | extra)
    ids = random_ids(model.config, 1, 9)
    assert_near(run(load_decoder(tmp_path), ids), run(model, ids))
    edit_tensors(tmp_path, lambda tensors: tensors | {"v_head.other.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"not used: v_head\.other\.weight"):
        load_decoder(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("opened", ["folder", "first", "last"])
def test_shards_without_an_index_open(kind, opened, tmp_path):
    model = tiny("llama")
    save_model(model, tmp_path, shard=60_000)
    paths = sorted(tmp_path.glob("model-*"))
    if kind == "bin":
        for path in paths:
            torch.save(load_file(path), path.with_name(f"pytorch_{path.stem}.bin"))
            path.unlink()
        paths = sorted(tmp_path.glob("pytorch_model-*"))
    (tmp_path / "model.safetensors.index.json").unlink()
    assert len(paths) > 2
    loaded = load_decoder({"folder": tmp_path, "first": paths[0], "last": paths[-1]}[opened])
    assert all(torch.equal(loaded.get_parameter(name), p) for name, p in model.named_parameters())
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=rf"is one of {len(paths)} shards; missing: {paths[1].name}"):
        load_decoder(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin", "config.json", "a.gguf", "tokenizer.json"])
def test_git_lfs_pointer_is_named(name, tmp_path):
    save_model(tiny("llama"), tmp_path)
    if name == "pytorch_model.bin":
        (tmp_path / WEIGHTS).unlink()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4976698672\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(Exception, match=rf"{name} is a Git LFS pointer to a file of 4,976,698,672 bytes: run `git lfs"):
        load(tmp_path / name if name == "a.gguf" else tmp_path)


@pytest.mark.parametrize("name", ["MODEL.GGUF", "Model.Gguf", f"sha256-{'0a' * 32}", "model"])
def test_gguf_files_of_any_name_open(name, tmp_path):
    model = gguf_tiny()
    save_gguf(model, tmp_path / "a.gguf", "F32")
    (tmp_path / "a.gguf").rename(tmp_path / name)
    assert find_model(tmp_path / name) == tmp_path / name
    loaded = load(tmp_path / name).model
    assert all(torch.equal(loaded.get_parameter(one), p) for one, p in model.named_parameters())
    if name.lower().endswith(".gguf"):
        assert find_model(tmp_path) == tmp_path / name
    (tmp_path / "other").write_bytes(b"GGML")
    with pytest.raises(CheckpointError, match=r"other is not a folder or a weights file \(\.gguf, \.safetensors"):
        find_model(tmp_path / "other")


def gguf_tiny():
    from tiny_gguf import gguf_model

    return gguf_model("llama")


def with_metadata(path, **extra):
    """Write a GGUF file with more metadata."""
    save_gguf(gguf_tiny(), path, "F32", extra={f"llama.{key}": value for key, value in extra.items()})
    return path


@pytest.mark.parametrize("extra", [
    {"expert_count": 0, "expert_used_count": 0},
    {"attention.causal": True},
    {"tensor_data_layout": "Meta AI original pth"},
    {"pooling_type": 3},
    {"attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0.0},
    {"final_logit_softcapping": 0.0, "logit_scale": 1.0},
], ids=str)  # fmt: skip
def test_gguf_keys_that_compute_nothing_are_accepted(extra, tmp_path):
    path = with_metadata(tmp_path / "a.gguf", **extra)
    assert set(read_header(path).metadata) >= {f"llama.{key}" for key in extra}
    assert load_decoder(path).config == gguf_tiny().config


@pytest.mark.parametrize(("key", "value"), [
    ("attention.causal", False), ("expert_count", 8), ("logit_scale", 0.5), ("attention.clamp_kqv", 3.0),
])  # fmt: skip
def test_the_same_gguf_keys_at_other_values_raise(key, value, tmp_path):
    with pytest.raises((CheckpointError, ConfigError), match=key):
        load_decoder(with_metadata(tmp_path / "a.gguf", **{key: value}))


# ---- Gemma 3 with images

VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "model_type": "siglip_vision_model",
}  # fmt: skip


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory):
    """A Gemma 3 with an image encoder, made and saved by transformers."""
    folder = tmp_path_factory.mktemp("gemma3")
    text = HF_CONFIGS["gemma3_text"]().to_dict()
    config = transformers.Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4)
    hf = hf_random(transformers.Gemma3ForConditionalGeneration(config))
    hf.save_pretrained(folder)
    return folder, hf


NAMES = {  # of the text model's tensors, by the version of transformers that wrote them
    "5": {},
    "4.50": {"model.language_model.": "language_model.model.", "model.": "", "lm_head.": "language_model.lm_head."},
    "base model": {"model.": ""},
}


@pytest.mark.parametrize("version", NAMES)
def test_text_model_of_a_multimodal_gemma_3_is_transformers(version, multimodal, tmp_path, capfd):
    from glassformer.cli import main

    folder, hf = multimodal
    shutil.copytree(folder, tmp_path / "model")

    def rename(tensors):
        pairs = NAMES[version].items()
        return {next((new + n.removeprefix(old) for old, new in pairs if n.startswith(old)), n): t
                for n, t in tensors.items()}  # fmt: skip

    edit_tensors(tmp_path / "model", rename)
    lm = load(tmp_path / "model")
    ids = random_ids(lm.config, 2, 40).clamp(max=80)  # no image tokens
    with torch.no_grad():
        assert_near(run(lm.model, ids), hf(input_ids=ids).logits)
    left_out = open_checkpoint(tmp_path / "model").left_out
    assert len(left_out) == sum("vision_tower" in name or "projector" in name for name in load_file(folder / WEIGHTS))
    main(["generate", str(tmp_path / "model"), "--ids", "5,6", "--max-tokens", "1"])
    assert f"left out: {len(left_out)} tensors of other parts, " in capfd.readouterr().err
    lm.save(tmp_path / "text")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text").eval()
    assert type(theirs).__name__ == "Gemma3ForCausalLM"
    with torch.no_grad():
        assert_near(theirs(ids).logits, hf(input_ids=ids).logits)


def test_multimodal_config_with_defaults_opens():
    """As Google published it: the text model's sizes that equal the defaults are left out."""
    from glassformer.families import read_config

    config = read_config({
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
        "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
        "model_type": "gemma3", "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }, "config.json")  # fmt: skip
    attention = config.layers[0].attention
    assert (config.vocab_size, config.context_length, config.family) == (262_208, 131_072, "gemma3_text")
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim, attention.window) == (8, 4, 256, 1024)
    assert config.layers[5].attention.rope.theta == 1e6
    with pytest.raises(ConfigError, match=r"text_config: keys this family does not understand: strange"):
        read_config({"model_type": "gemma3", "text_config": {"hidden_size": 8, "intermediate_size": 9,
                     "num_hidden_layers": 1, "strange": 1}}, "config.json")  # fmt: skip
