"""DeepSeek models as GGUF: the published models' metadata, current and legacy tensor layouts, and errors."""

import math

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny import random_ids, run, tiny_config
from tiny_gguf import gguf_config, gguf_model

from glassformer.config import LinearScaling, YarnScaling, change
from glassformer.errors import CheckpointError, ConfigError
from glassformer.families import read_config
from glassformer.formats import load_decoder, save_model
from glassformer.formats.gguf.metadata import read_metadata, write_metadata
from glassformer.formats.gguf.save import save_gguf

FAMILIES = ("deepseek_v2", "deepseek_v3")
HEAD = {"output.weight"}

# config.json and the metadata that llama.cpp's converter writes for it: common keys, then those of each model.
THEIRS = {
    "hidden_act": "silu", "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_layer_freq": 1,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000, "v_head_dim": 128,
    "tie_word_embeddings": False, "attention_bias": False,
}  # fmt: skip
YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}
WRITTEN = {
    "context_length": 163840, "attention.layer_norm_rms_epsilon": 1e-6, "attention.kv_lora_rank": 512,
    "attention.head_count_kv": 1, "attention.key_length": 576, "attention.value_length": 512,
    "attention.key_length_mla": 192, "attention.value_length_mla": 128, "rope.dimension_count": 64,
    "rope.freq_base": 10000.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 40.0,
    "rope.scaling.original_context_length": 4096, "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
}  # fmt: skip
PUBLISHED = {
    "V2-Lite": (
        {
            "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27,
            "num_attention_heads": 16, "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
            "num_experts_per_tok": 6, "first_k_dense_replace": 1, "q_lora_rank": None, "routed_scaling_factor": 1.0,
            "topk_method": "greedy", "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "vocab_size": 102400,
            "scoring_func": "softmax", "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
        },
        {
            "embedding_length": 2048, "feed_forward_length": 10944, "block_count": 27, "attention.head_count": 16,
            "expert_feed_forward_length": 1408, "expert_count": 64, "expert_shared_count": 2, "expert_used_count": 6,
            "leading_dense_block_count": 1, "expert_weights_scale": 1.0, "expert_group_count": 1,
            "expert_group_used_count": 1, "expert_gating_func": 1, "vocab_size": 102400,
            "rope.scaling.yarn_log_multiplier": 0.0707,
        },
    ),
    "V2": (
        {
            "model_type": "deepseek_v2", "hidden_size": 5120, "intermediate_size": 12288, "num_hidden_layers": 60,
            "num_attention_heads": 128, "moe_intermediate_size": 1536, "n_routed_experts": 160, "n_shared_experts": 2,
            "num_experts_per_tok": 6, "first_k_dense_replace": 1, "q_lora_rank": 1536, "routed_scaling_factor": 16.0,
            "topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3, "norm_topk_prob": False,
            "scoring_func": "softmax", "vocab_size": 102400,
            "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
        },
        {
            "embedding_length": 5120, "feed_forward_length": 12288, "block_count": 60, "attention.head_count": 128,
            "attention.q_lora_rank": 1536, "expert_feed_forward_length": 1536, "expert_count": 160,
            "expert_shared_count": 2, "expert_used_count": 6, "leading_dense_block_count": 1,
            "expert_weights_scale": 16.0, "expert_group_count": 8, "expert_group_used_count": 3,
            "expert_gating_func": 1, "vocab_size": 102400, "rope.scaling.yarn_log_multiplier": 0.0707,
        },
    ),
    "V3": (
        {
            "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
            "num_attention_heads": 128, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
            "num_experts_per_tok": 8, "first_k_dense_replace": 3, "q_lora_rank": 1536, "routed_scaling_factor": 2.5,
            "topk_method": "noaux_tc", "n_group": 8, "topk_group": 4, "norm_topk_prob": True, "vocab_size": 129280,
            "scoring_func": "sigmoid", "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        },
        {
            "embedding_length": 7168, "feed_forward_length": 18432, "block_count": 61, "attention.head_count": 128,
            "attention.q_lora_rank": 1536, "expert_feed_forward_length": 2048, "expert_count": 256,
            "expert_shared_count": 1, "expert_used_count": 8, "leading_dense_block_count": 3,
            "expert_weights_scale": 2.5, "expert_weights_norm": True, "expert_group_count": 8,
            "expert_group_used_count": 4, "expert_gating_func": 2, "vocab_size": 129280,
            "rope.scaling.yarn_log_multiplier": 0.1,
        },
    ),
}  # fmt: skip


def metadata(**keys):
    return {"general.architecture": "deepseek2"} | {f"deepseek2.{key}": value for key, value in keys.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_metadata(name):
    """Metadata and config.json give one configuration. Every written key equals the converter's."""
    theirs, own = PUBLISHED[name]
    config = read_config({"architectures": ["..."]} | THEIRS | theirs, "config.json")
    written = metadata(**WRITTEN, **own)
    assert read_metadata(written, HEAD, theirs["vocab_size"], "x") == config
    if name == "V2":  # the converter writes it although llama.cpp differs
        with pytest.raises(ConfigError, match="compares groups of experts by the best 2 of each, not 1"):
            write_metadata(config)
        return
    written |= metadata(**{"rope.scaling.attn_factor": 1.0})
    if name == "V2-Lite":  # a single group has no keys
        written = {key: value for key, value in written.items() if "expert_group" not in key}
        written |= metadata(**{"attention.q_lora_rank": 0})
    near = {key: pytest.approx(value) if type(value) is float else value for key, value in written.items()}
    assert write_metadata(config).metadata == near


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_equal_the_checkpoint(family, tmp_path):
    """kv_b_proj is split per head into transposed keys and values. All names are the package's."""
    model = gguf_model(family)
    save_gguf(model, tmp_path / "a.gguf", "F32")
    save_model(model, tmp_path / "hf")
    theirs = load_file(tmp_path / "hf" / "model.safetensors")
    ours = {one.name: np.array(one.data) for one in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.DEEPSEEK2]}
    for i in range(3):
        layer = f"model.layers.{i}.self_attn"
        keys, values = np.split(theirs[f"{layer}.kv_b_proj.weight"].reshape(4, 32 + 24, 32), [32], 1)
        np.testing.assert_array_equal(ours[f"blk.{i}.attn_k_b.weight"], keys.transpose(0, 2, 1))
        np.testing.assert_array_equal(ours[f"blk.{i}.attn_v_b.weight"], values)
        for gguf_name, hf_name in (
            ("q_b", "q_b_proj"),
            ("kv_a_mqa", "kv_a_proj_with_mqa"),
            ("q_a_norm", "q_a_layernorm"),
        ):
            np.testing.assert_array_equal(ours[f"blk.{i}.attn_{gguf_name}.weight"], theirs[f"{layer}.{hf_name}.weight"])
        names = {name.rpartition(".")[0] for name in ours if name.startswith(f"blk.{i}.")}
        assert {name.replace(f"blk.{i}", "blk.{bid}") for name in names} <= known
    if family == "deepseek_v3":
        bias = theirs["model.layers.1.mlp.gate.e_score_correction_bias"]
        np.testing.assert_array_equal(ours["blk.1.exp_probs_b.bias"], bias)


def write_legacy_file(path, to):
    """Copy a file in the legacy layout, with kv_b_proj as one tensor."""
    reader, both = gguf.GGUFReader(path), {}
    writer = gguf.GGUFWriter(to, "deepseek2")
    changed = {"head_count_kv": 4, "key_length": 40, "value_length": 24}
    for name, field in reader.fields.items():
        key, own = name.removeprefix("deepseek2.attention."), field.contents()
        if not name.startswith("GGUF.") and name != "general.architecture" and not name.endswith("_mla"):
            writer.add_key_value(name, changed.get(key, own) if key != name else own, field.types[0])
    for tensor in reader.tensors:
        array = np.array(tensor.data)
        block, _, part = tensor.name.partition(".attn_")
        if part not in ("k_b.weight", "v_b.weight"):
            writer.add_tensor(tensor.name, array)
            continue
        both.setdefault(block, []).append(array.transpose(0, 2, 1) if part[0] == "k" else array)
        if len(both[block]) == 2:
            writer.add_tensor(f"{block}.attn_kv_b.weight", np.concatenate(both[block], 1).reshape(-1, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


@pytest.mark.parametrize("family", FAMILIES)
def test_legacy_layout(family, tmp_path):
    model = gguf_model(family)
    save_gguf(model, tmp_path / "a.gguf", "F32")
    again = load_decoder(write_legacy_file(tmp_path / "a.gguf", tmp_path / "b.gguf"))
    assert again.config == model.config
    for name, p in model.named_parameters():
        assert torch.equal(again.get_parameter(name), p), name


@pytest.mark.parametrize("size", [1, 700, 1 << 20])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_loading_options(size, kind, tmp_path, monkeypatch):
    """Chunks of one head and of several. The router's correction bias stays float32."""
    model = gguf_model("deepseek_v3")
    save_gguf(model, tmp_path / "a.gguf", kind)
    reference = load_decoder(tmp_path / "a.gguf")
    monkeypatch.setattr("glassformer.formats.reader.CHUNK_BYTES", size)
    for dtype in (None, torch.bfloat16):
        loaded = load_decoder(tmp_path / "a.gguf", dtype=dtype, copy=True)
        for name, p in reference.named_parameters():
            exact = dtype is None or name.endswith("correction")
            assert torch.equal(loaded.get_parameter(name), p if exact else p.to(dtype)), name


def test_tensor_of_wrong_shape_raises(tmp_path):
    save_gguf(gguf_model("deepseek_v3"), tmp_path / "a.gguf", "F32")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "deepseek2")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        array = np.array(tensor.data)
        writer.add_tensor(tensor.name, array.transpose(0, 2, 1).copy() if ".attn_v_b." in tensor.name else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"attn_v_b.weight is \[4, 32, 24\], the config needs \[4, 24, 32\]"):
        load_decoder(tmp_path / "b.gguf")


def config_with_layers(family, n_layers, **changes):
    config = gguf_config(family, **changes)
    return change(config, "layers", (config.layers[0], *[config.layers[1]] * (n_layers - 1)))


def test_q_rank_that_llama_cpp_infers_from_the_layer_count():
    for n_layers in (26, 27):
        with pytest.raises(ConfigError, match=rf"assumes no q_rank for {n_layers} layers, got 64"):
            write_metadata(config_with_layers("deepseek_v2", n_layers))
    latent = change(gguf_config("deepseek_v2").layers[0].attention.latent, "q_rank", None)
    for config in (
        config_with_layers("deepseek_v2", 28),
        config_with_layers("deepseek_v2", 27, **{"*.attention.latent": latent}),
    ):
        written = write_metadata(config).metadata
        assert written["deepseek2.attention.q_lora_rank"] == (config.layers[0].attention.latent.q_rank or 0)


ROPE = "*.attention.rope.scaling"


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("deepseek_v2", {"*.attention.bias": True}, r"layers.0.attention.bias would be False"),
        ("deepseek_v3", {"*.norm.eps": 1e-5}, r"layers.0.norm.eps would be 1e-06"),
        ("deepseek_v3", {"*.mlp.activation": "relu"}, r"layers.0.mlp.activation would be 'silu'"),
        ("deepseek_v3", {"layers.0.attention.latent.eps": 1e-5}, r"layers.0.attention.latent.eps would be 1e-06"),
        ("deepseek_v2", {"*.experts.shared_d_ff": None}, r"needs a shared expert"),
        ("deepseek_v2", {"*.experts.shared_d_ff": 100}, r"layers.1.experts.shared_d_ff would be 96"),
        ("deepseek_v3", {"*.experts.top_groups": 4}, r"leaves out a group of experts, got top_groups = n_groups = 4"),
        ("deepseek_v3", {ROPE: LinearScaling(3.0)}, r"rope.scaling.factor = 3.0 \(linear\) is not supported"),
        ("deepseek_v3", {ROPE: None}, r"layers.0.attention.scale would be None"),
        ("deepseek_v3", {ROPE: YarnScaling(1.0, 16, attention_factor=1.2)}, r"attn_factor = 1.2 is not supported"),
        ("deepseek_v3", {"*.attention.scale": 0.1}, r"mscale_all_dim must be a number above 0, got -"),
        ("deepseek_v3", {"layers.2.experts": None}, r"layers.2.experts would be"),
    ],
    ids=str,
)
def test_unsupported_setting_is_named(family, changes, message):
    with pytest.raises(ConfigError, match=message):
        write_metadata(gguf_config(family, **changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_config_without_gguf_form_raises(family):
    with pytest.raises(ConfigError, match="cannot describe this"):
        write_metadata(tiny_config(family))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("expert_gating_func", 3, "expert_gating_func = 3 is not supported"),
        ("expert_gating_func", 1, "norm_topk_prob = True is not supported, only False"),
        ("attention.head_count_kv", 4, "attention.head_count_kv = 4 is not supported, only 1"),
        ("attention.key_length", 48, "attention.key_length = 48 is not supported, only 40"),
        ("attention.key_length_mla", 8, "the head width must be above rope.dimension_count, 8, got 8"),
        ("attention.q_lora_rank", -1, "attention.q_lora_rank must be a whole number of at least 0"),
        ("attention.layer_norm_rms_epsilon", 1e-5, "layer_norm_rms_epsilon = 1e-05 is not supported, only 1e-06"),
        ("attention.temperature_scale", 0.1, "does not understand: attention.temperature_scale"),
        ("nextn_predict_layers", 1, "does not understand: nextn_predict_layers"),
        ("rope.scaling.yarn_log_multiplier", float("nan"), "yarn_log_multiplier must be a number within 1000"),
        ("rope.scaling.yarn_log_multiplier", "0.1", "yarn_log_multiplier must be a number within 1000"),
        ("rope.scaling.factor", 0.5, r"rope.scaling.factor = 0.5 \(yarn\) is not supported"),
        ("vocab_size", 98, "vocab_size = 98 is not supported, only 97"),
    ],
    ids=str,
)
def test_unsupported_writtenraises(key, value, message):
    written = write_metadata(gguf_config("deepseek_v3")).metadata
    with pytest.raises(ConfigError, match=message):
        read_metadata(written | {f"deepseek2.{key}": value}, HEAD, 97, "x")


def test_writtendefaults():
    """llama.cpp's defaults: softmax, no groups, unscaled weights, experts in every layer."""
    written = write_metadata(gguf_config("deepseek_v3")).metadata
    start = ("deepseek2.expert_gating_func", "deepseek2.expert_group", "deepseek2.expert_weights", "deepseek2.leading")
    config = read_metadata({key: v for key, v in written.items() if not key.startswith(start)}, HEAD, 97, "x")
    moe = config.layers[0].experts
    assert config.family == "deepseek_v2"
    assert (moe.scores, moe.normed, moe.scale, moe.n_groups, moe.score_correction) == ("softmax", False, 1.0, 1, False)


@pytest.mark.parametrize(
    ("gain", "scale"), [(1.0, None), (1.0, 0.3), (1.2, 0.3), (0.9, 0.2), (1 + 0.1 * math.log(40), 0.3)]
)
def test_yarn_scale_as_llama_cpp_computes_it(gain, scale):
    """llama.cpp's arithmetic on the written keys gives the rotation gain and the attention scale."""
    yarn = YarnScaling(40.0, 16, attention_factor=gain)
    written = write_metadata(gguf_config("deepseek_v2", **{ROPE: yarn, "*.attention.scale": scale})).metadata
    log, by = math.log(40.0), written.get("deepseek2.rope.scaling.yarn_log_multiplier", 0.0) / 0.1
    turned = written["deepseek2.rope.scaling.attn_factor"] * (1 if by else 1 + 0.1 * log)
    assert turned == pytest.approx(gain)
    assert (turned * (1 + 0.1 * by * log)) ** 2 / math.sqrt(40) == pytest.approx(scale or 40**-0.5)


def test_loaded_model_gives_equal_logits(tmp_path):
    """Lengths on both sides of the switch between expanded and absorbed latent attention."""
    model = gguf_model("deepseek_v3")
    save_gguf(model, tmp_path / "a.gguf", "F32")
    for length in (1, 3, 60):
        ids = random_ids(model.config, 1, length)
        assert torch.equal(run(load_decoder(tmp_path / "a.gguf"), ids), run(model, ids))
