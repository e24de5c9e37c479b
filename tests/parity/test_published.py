"""config.json files as published with checkpoints: every key is known and read with its meaning."""

from dataclasses import replace

import pytest
from tiny_encoders import CONFIGS as ENCODERS
from tiny_families import CONFIGS

from glassformer.cache.size import cached_numbers
from glassformer.config import (
    BandScaling,
    LatentConfig,
    LongScaling,
    MoEConfig,
    NormConfig,
    RopeConfig,
    YarnScaling,
    change,
)
from glassformer.errors import ConfigError
from glassformer.families import read_config, write_config
from glassformer.formats.quantization import take_quantization

COMMON_KEYS = {
    "architectures": ["..."], "bos_token_id": 1, "eos_token_id": [2, 3], "initializer_range": 0.02,
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0", "use_cache": True,
}  # fmt: skip


def published(**keys):
    raw = COMMON_KEYS | keys
    take_quantization(raw, "config.json")
    return read_config(raw, "config.json")


def test_llama_3_1_8b():
    config = published(
        model_type="llama", attention_bias=False, attention_dropout=0.0, hidden_act="silu", hidden_size=4096,
        intermediate_size=14336, max_position_embeddings=131072, mlp_bias=False, num_attention_heads=32,
        num_hidden_layers=32, num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-05, rope_theta=500000.0,
        rope_scaling={
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        tie_word_embeddings=False, vocab_size=128256,
    )  # fmt: skip
    assert config.layers[0].attention.rope == RopeConfig(500000.0, None, BandScaling(8.0, 1.0, 4.0, 8192))
    assert config.context_length == 131072


@pytest.mark.parametrize("window", [None, 131072])
def test_qwen_2_5(window):
    config = published(
        model_type="qwen2", attention_dropout=0.0, hidden_act="silu", hidden_size=2048, intermediate_size=11008,
        max_position_embeddings=32768, max_window_layers=36, num_attention_heads=16, num_hidden_layers=36,
        num_key_value_heads=2, rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=window,
        tie_word_embeddings=True, use_mrope=False, use_sliding_window=False, vocab_size=151936,
    )  # fmt: skip
    assert {layer.attention.window for layer in config.layers} == {None}
    assert config.layers[0].attention.bias
    assert not config.layers[0].attention.out_bias


def test_gemma_2b_gelu_is_the_tanh_approximation():
    config = published(
        model_type="gemma", attention_bias=False, attention_dropout=0.0, head_dim=256, hidden_act="gelu",
        hidden_size=2048, intermediate_size=16384, max_position_embeddings=8192, num_attention_heads=8,
        num_hidden_layers=18, num_key_value_heads=1, pad_token_id=0, rms_norm_eps=1e-06, rope_scaling=None,
        rope_theta=10000.0, vocab_size=256000,
    )  # fmt: skip
    assert config.layers[0].mlp.activation == "gelu_tanh"
    assert config.tied_head


def test_gemma_2_9b():
    config = published(
        model_type="gemma2", attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=50.0,
        cache_implementation="hybrid", final_logit_softcapping=30.0, head_dim=256, hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh", hidden_size=3584, intermediate_size=14336,
        max_position_embeddings=8192, num_attention_heads=16, num_hidden_layers=42, num_key_value_heads=8,
        pad_token_id=0, query_pre_attn_scalar=256, rms_norm_eps=1e-06, rope_theta=10000.0, sliding_window=4096,
        vocab_size=256000,
    )  # fmt: skip
    assert [layer.attention.window for layer in config.layers] == [4096, None] * 21
    assert config.layers[0].attention.softcap == 50.0
    assert config.logit_softcap == 30.0
    assert config.layers[0].attention.scale == 1 / 16


@pytest.mark.parametrize("pattern", ["sliding_window_pattern", "_sliding_window_pattern"])
def test_gemma_3_1b(pattern):
    config = published(
        model_type="gemma3_text", attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=None,
        cache_implementation="hybrid", final_logit_softcapping=None, head_dim=256,
        hidden_activation="gelu_pytorch_tanh", hidden_size=1152, intermediate_size=6912,
        max_position_embeddings=32768, num_attention_heads=4, num_hidden_layers=26, num_key_value_heads=1,
        pad_token_id=0, query_pre_attn_scalar=256, rms_norm_eps=1e-06, rope_local_base_freq=10000, rope_scaling=None,
        rope_theta=1000000, sliding_window=512, use_bidirectional_attention=False, vocab_size=262144,
        **{pattern: 6},
    )  # fmt: skip
    kinds = [(layer.attention.window, layer.attention.rope.theta) for layer in config.layers]
    assert kinds == ([(512, 1e4)] * 5 + [(None, 1e6)]) * 4 + [(512, 1e4)] * 2


def test_phi_4_mini():
    factors = [1.0 + i / 10 for i in range(48)]
    config = published(
        model_type="phi3", attention_bias=False, attention_dropout=0.0, auto_map={"AutoConfig": "..."},
        embd_pdrop=0.0, full_attn_mod=1, hidden_act="silu", hidden_size=3072, intermediate_size=8192,
        interpolate_factor=1, lm_head_bias=False, max_position_embeddings=131072, mlp_bias=False,
        num_attention_heads=24, num_hidden_layers=32, num_key_value_heads=8, original_max_position_embeddings=4096,
        pad_token_id=199999, partial_rotary_factor=0.75, resid_pdrop=0.0, rms_norm_eps=1e-05,
        rope_scaling={"long_factor": factors, "short_factor": [1.0] * 48, "type": "longrope"}, rope_theta=10000.0,
        sliding_window=262144, tie_word_embeddings=True, vocab_size=200064,
    )  # fmt: skip
    rope = config.layers[0].attention.rope
    assert rope.dim == 96
    assert rope.scaling == LongScaling((1.0,) * 48, tuple(factors), 4096, rope.scaling.attention_factor)
    assert abs(rope.scaling.attention_factor - 1.190238) < 1e-6  # sqrt(1 + ln 32 / ln 4096)
    assert config.long_text == 4097


def test_phi_2():
    config = published(
        model_type="phi", attention_dropout=0.0, embd_pdrop=0.0, hidden_act="gelu_new", hidden_size=2560,
        intermediate_size=10240, layer_norm_eps=1e-05, max_position_embeddings=2048, num_attention_heads=32,
        num_hidden_layers=32, num_key_value_heads=32, partial_rotary_factor=0.4, qk_layernorm=False, resid_pdrop=0.1,
        rope_scaling=None, rope_theta=10000.0, tie_word_embeddings=False, vocab_size=51200,
    )  # fmt: skip
    assert config.layers[0].attention.rope.dim == 32
    assert config.layers[0].shared_norm
    assert config.head_bias


def test_pythia_and_gpt_neox_20b():
    keys = {
        "model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 4096, "intermediate_size": 16384,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 32,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "use_parallel_residual": True,
        "vocab_size": 50432,
    }  # fmt: skip
    config = published(**keys, classifier_dropout=0.1)
    assert config.layers[0].attention.rope == RopeConfig(10000.0, 32)
    assert config == published(**keys, attention_probs_dropout_prob=0, hidden_dropout_prob=0)


def test_smollm3_3b():
    config = published(
        model_type="smollm3", attention_bias=False, attention_dropout=0.0, hidden_act="silu", hidden_size=2048,
        intermediate_size=11008, layer_types=["full_attention"] * 36, max_position_embeddings=65536,
        max_window_layers=28, mlp_bias=False, no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9,
        num_attention_heads=16, num_hidden_layers=36, num_key_value_heads=4, pad_token_id=128004, pretraining_tp=2,
        rms_norm_eps=1e-06, rope_scaling=None, rope_theta=5000000.0, sliding_window=None, use_sliding_window=False,
        vocab_size=128256,
    )  # fmt: skip
    assert [layer.attention.rope is None for layer in config.layers] == [False, False, False, True] * 9


def test_falcon_7b():
    config = published(
        model_type="falcon", alibi=False, apply_residual_connection_post_layernorm=False, attention_dropout=0.0,
        auto_map={}, bias=False, hidden_dropout=0.0, hidden_size=4544, layer_norm_epsilon=1e-05, multi_query=True,
        new_decoder_architecture=False, num_attention_heads=71, num_hidden_layers=32, parallel_attn=True,
        vocab_size=65024,
    )  # fmt: skip
    attention = config.layers[0].attention
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (71, 1, 64)
    assert config.layers[0].norm == NormConfig("layer", 1e-5)


def test_mixtral_8x7b():
    config = published(
        model_type="mixtral", attention_dropout=0.0, hidden_act="silu", hidden_size=4096, intermediate_size=14336,
        max_position_embeddings=32768, num_attention_heads=32, num_experts_per_tok=2, num_hidden_layers=32,
        num_key_value_heads=8, num_local_experts=8, output_router_logits=False, rms_norm_eps=1e-05,
        rope_theta=1000000.0, router_aux_loss_coef=0.02, sliding_window=None, tie_word_embeddings=False,
        vocab_size=32000,
    )  # fmt: skip
    assert {layer.experts for layer in config.layers} == {MoEConfig(8, 2)}
    assert config.layers[0].attention.window is None


def test_qwen3_30b_a3b():
    config = published(
        model_type="qwen3_moe", attention_bias=False, attention_dropout=0.0, decoder_sparse_step=1, head_dim=128,
        hidden_act="silu", hidden_size=2048, intermediate_size=6144, max_position_embeddings=40960,
        max_window_layers=48, mlp_only_layers=[], moe_intermediate_size=768, norm_topk_prob=True,
        num_attention_heads=32, num_experts=128, num_experts_per_tok=8, num_hidden_layers=48, num_key_value_heads=4,
        output_router_logits=False, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=1000000.0,
        router_aux_loss_coef=0.001, sliding_window=None, tie_word_embeddings=False, use_sliding_window=False,
        vocab_size=151936,
    )  # fmt: skip
    assert {(layer.experts, layer.mlp.d_ff) for layer in config.layers} == {(MoEConfig(128, 8), 768)}


def test_olmoe_1b_7b():
    config = published(
        model_type="olmoe", attention_bias=False, attention_dropout=0.0, clip_qkv=None, hidden_act="silu",
        hidden_size=2048, intermediate_size=1024, max_position_embeddings=4096, norm_topk_prob=False,
        num_attention_heads=16, num_experts=64, num_experts_per_tok=8, num_hidden_layers=16, num_key_value_heads=16,
        output_router_logits=False, pad_token_id=1, rms_norm_eps=1e-05, rope_scaling=None, rope_theta=10000.0,
        router_aux_loss_coef=0.01, tie_word_embeddings=False, vocab_size=50304,
    )  # fmt: skip
    assert {layer.experts for layer in config.layers} == {MoEConfig(64, 8, normed=False)}
    assert config.layers[0].attention.qk_norm_over == "width"


DEEPSEEK = {
    "attention_bias": False, "attention_dropout": 0.0, "auto_map": {"AutoConfig": "..."}, "aux_loss_alpha": 0.001,
    "ep_size": 1, "hidden_act": "silu", "max_position_embeddings": 163840, "moe_layer_freq": 1, "pretraining_tp": 1,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "kv_lora_rank": 512, "v_head_dim": 128, "rms_norm_eps": 1e-06,
    "rope_theta": 10000, "seq_aux": True, "tie_word_embeddings": False,
}  # fmt: skip


def yarn(mscale):
    return {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": mscale, "mscale_all_dim": mscale,
        "original_max_position_embeddings": 4096, "type": "yarn",
    }  # fmt: skip


@pytest.mark.parametrize("lite", [True, False])
def test_deepseek_v2_and_its_lite_form(lite):
    sizes = {
        "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_group": 1, "topk_group": 1,
        "n_routed_experts": 64, "num_attention_heads": 16, "num_hidden_layers": 27, "q_lora_rank": None,
        "routed_scaling_factor": 1.0, "topk_method": "greedy",
    } if lite else {
        "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536, "n_group": 8, "topk_group": 3,
        "n_routed_experts": 160, "num_attention_heads": 128, "num_hidden_layers": 60, "q_lora_rank": 1536,
        "routed_scaling_factor": 16.0, "topk_method": "group_limited_greedy",
    }  # fmt: skip
    config = published(
        **DEEPSEEK, **sizes, model_type="deepseek_v2", first_k_dense_replace=1, n_shared_experts=2,
        norm_topk_prob=False, num_experts_per_tok=6, num_key_value_heads=sizes["num_attention_heads"],
        rope_scaling=yarn(0.707), scoring_func="softmax", vocab_size=102400,
    )  # fmt: skip
    dense, routed = config.layers[0], config.layers[-1]
    assert [layer.experts is not None for layer in config.layers] == [False] + [True] * (config.n_layers - 1)
    assert dense.attention.latent == LatentConfig(512, 128, None if lite else 1536)
    assert dense.attention.cached_per_token == 576
    assert dense.attention.rope.scaling == YarnScaling(40.0, 4096)  # cos and sin are not scaled
    assert abs(dense.attention.scale - 0.1147213867) < 1e-9  # (0.0707 ln 40 + 1)^2 / sqrt(192)
    groups = {} if lite else {"n_groups": 8, "top_groups": 3}
    scale, n = (1.0, 64) if lite else (16.0, 160)
    shared = 2 * routed.mlp.d_ff
    assert routed.experts == MoEConfig(
        n, 6, normed=False, scale=scale, float32_router=True, shared_d_ff=shared, **groups
    )
    assert read_config(write_config(config), "config.json") == config


def test_deepseek_v3():
    config = published(
        **DEEPSEEK, model_type="deepseek_v3", first_k_dense_replace=3, hidden_size=7168, intermediate_size=18432,
        moe_intermediate_size=2048, n_group=8, n_routed_experts=256, n_shared_experts=1, norm_topk_prob=True,
        num_attention_heads=128, num_experts_per_tok=8, num_hidden_layers=61, num_key_value_heads=128,
        num_nextn_predict_layers=1, q_lora_rank=1536, rope_scaling=yarn(1.0), routed_scaling_factor=2.5,
        scoring_func="sigmoid", topk_group=4, topk_method="noaux_tc", vocab_size=129280,
        quantization_config={
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
        },
    )  # fmt: skip
    assert [layer.experts is not None for layer in config.layers] == [False] * 3 + [True] * 58
    assert config.layers[3].experts == MoEConfig(
        256, 8, "sigmoid", scale=2.5, float32_router=True, score_correction=True, n_groups=8, top_groups=4,
        group_best=2, shared_d_ff=2048,
    )  # fmt: skip
    assert abs(config.layers[0].attention.scale - 0.1352337788) < 1e-9  # (0.1 ln 40 + 1)^2 / sqrt(192)
    assert cached_numbers(config, 1) == 61 * 576
    assert read_config(write_config(config), "config.json") == config


@pytest.mark.parametrize("mscale", [1.0, 0.707, 0.1, 1.3, 0.7071067811865476, 1 / 3, 2 / 7])
@pytest.mark.parametrize("factor", [1.5, 4.0, 40])
def test_yarn_mscale_round_trips(mscale, factor):
    """The scale round-trips bit for bit, and so does mscale if it has few digits."""
    raw = write_config(CONFIGS["deepseek_v3"]()) | {"rope_parameters": yarn(mscale) | {"factor": factor}}
    config = read_config(raw, "config.json")
    written = write_config(config)["rope_parameters"]["mscale_all_dim"]
    assert abs(written - mscale) < 1e-14
    assert written == mscale or len(str(mscale)) > 5
    assert read_config(write_config(config), "config.json") == config


def test_experts_in_every_other_layer():
    raw = write_config(CONFIGS["deepseek_v2"]()) | {"num_hidden_layers": 7, "moe_layer_freq": 2}
    for first, expert_layers in ((0, [0, 2, 4, 6]), (1, [2, 4, 6]), (3, [4, 6])):
        config = read_config(raw | {"first_k_dense_replace": first}, "config.json")
        assert [i for i, layer in enumerate(config.layers) if layer.experts is not None] == expert_layers
        assert read_config(write_config(config), "config.json") == config
    uneven = change(config, "layers.1", config.layers[4])
    with pytest.raises(ConfigError, match="cannot describe this model"):
        write_config(uneven)


@pytest.mark.parametrize(
    ("family", "keys", "why"),
    [
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob = True is not supported"),
        ("deepseek_v2", {"mlp_bias": True}, "mlp_bias = True is not supported"),
        ("deepseek_v2", {"topk_method": "greedy"}, "n_group = 3 is not supported, only 1, None"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method = 'noaux_tc' is not supported"),
        ("deepseek_v2", {"num_key_value_heads": 2}, "num_key_value_heads = 2 is not supported, only 4"),
        ("deepseek_v2", {"qk_head_dim": 15}, "qk_head_dim = 15 is not supported, only 14"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave = False is not supported"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func = 'softmax' is not supported"),
    ],
    ids=str,
)
def test_unsupported_deepseek_settings_raise(family, keys, why):
    with pytest.raises(ConfigError, match=why):
        read_config(write_config(CONFIGS[family]()) | keys, "config.json")


def test_gpt_oss_20b():
    config = published(
        model_type="gpt_oss", attention_bias=True, attention_dropout=0.0, experts_per_token=4, head_dim=64,
        hidden_act="silu", hidden_size=2880, initial_context_length=4096, intermediate_size=2880,
        layer_types=["sliding_attention", "full_attention"] * 12, max_position_embeddings=131072,
        num_attention_heads=64, num_experts_per_tok=4, num_hidden_layers=24, num_key_value_heads=8,
        num_local_experts=32, output_router_logits=False, pad_token_id=199999, rms_norm_eps=1e-05,
        quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
        rope_scaling={
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
            "rope_type": "yarn", "truncate": False,
        },
        rope_theta=150000, router_aux_loss_coef=0.9, sliding_window=128, swiglu_limit=7.0, tie_word_embeddings=False,
        vocab_size=201088,
    )  # fmt: skip
    assert [layer.attention.window for layer in config.layers] == [128, None] * 12
    rope = config.layers[0].attention.rope
    assert abs(rope.scaling.attention_factor - 1.3465736) < 1e-6  # 0.1 ln 32 + 1
    assert not rope.scaling.truncate
    assert config.layers[0].experts == MoEConfig(32, 4, router_bias=True)


UNUSED_KEYS = {  # keys of published files without an effect, by the program that writes them
    "transformers": {
        "_attn_implementation_autoset": True, "is_encoder_decoder": False, "add_cross_attention": False,
        "tie_encoder_decoder": False, "pruned_heads": {}, "torchscript": False, "use_bfloat16": False,
        "temperature": 0.6, "top_p": 0.9, "top_k": 50, "do_sample": True, "repetition_penalty": 1.1,
        "finetuning_task": None, "remove_invalid_values": False, "suppress_tokens": None, "max_new_tokens": 9,
    },
    "unsloth": {"unsloth_fixed": True, "unsloth_version": "2025.9.1", "model_name": None},
    "null": {"quantization_config": None, "some_future_feature": None},
}  # fmt: skip
BERT_EXPORT = {
    "directionality": "bidi", "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128, "pooler_type": "first_token_transform", "uniem_embedding_strategy": "last_mean",
    "language": "english", "name": "Bert",
}  # fmt: skip


def tiny_config_of(family):
    return (
        replace(ENCODERS[family], pooler=False, head=None, next_sentence=False)
        if family in ENCODERS
        else CONFIGS[family]()
    )


@pytest.mark.parametrize("family", [*CONFIGS, *ENCODERS])
@pytest.mark.parametrize("writer", [*UNUSED_KEYS, "BERT's export"])
def test_keys_without_effect_are_accepted(family, writer):
    raw = write_config(tiny_config_of(family))
    assert read_config(raw | UNUSED_KEYS.get(writer, BERT_EXPORT), "config.json") == read_config(raw, "config.json")


@pytest.mark.parametrize(("family", "keys", "allowed"), [
    ("llama", {"sliding_window": None, "layer_types": ["full_attention"] * 3}, True),
    ("llama", {"sliding_window": 9}, False),
    ("llama", {"layer_types": ["sliding_attention"] * 3}, False),
    ("llama", {"layer_types": ["full_attention"] * 2}, False),
    ("llama", {"is_decoder": True, "use_mrope": False}, True),
    ("llama", {"is_encoder_decoder": True}, False),
    ("llama", {"add_cross_attention": True}, False),
    ("llama", {"residual_multiplier": 1.0, "logits_scaling": 1}, True),
    ("llama", {"residual_multiplier": 0.5}, False),
    ("llama", {"logits_scaling": 8.0}, False),
    ("llama", {"qk_layernorm": False, "use_qk_norm": False}, True),
    ("llama", {"qk_layernorm": True}, False),
    ("mistral", {"attention_bias": False, "mlp_bias": False, "layer_types": ["sliding_attention"] * 3}, True),
    ("mistral", {"attention_bias": True}, False),
    ("mistral", {"layer_types": ["full_attention"] * 3}, False),
    ("mistral", {"partial_rotary_factor": 1.0}, True),
    ("mistral", {"partial_rotary_factor": 0.5}, False),
    ("gpt2", {"head_dim": 12, "num_key_value_heads": 4, "position_embedding_type": "absolute"}, True),
    ("gpt2", {"num_key_value_heads": 2}, False),
    ("gpt2", {"position_embedding_type": "relative_key"}, False),
    ("gpt_neox", {"partial_rotary_factor": 0.5, "rope_theta": 100.0, "rope_scaling": None}, True),
    ("gpt_neox", {"partial_rotary_factor": 0.25}, False),
    ("gpt_neox", {"rope_theta": 1e6}, False),
    ("bert", {"tie_encoder_decoder": False, "is_encoder_decoder": False}, True),
    ("bert", {"is_decoder": True}, False),
], ids=str)  # fmt: skip
def test_redundant_key_is_accepted_only_with_its_default(family, keys, allowed):
    config = tiny_config_of(family)
    raw = write_config(config)
    if allowed:
        assert read_config(raw | keys, "config.json") == read_config(raw, "config.json")
    else:
        with pytest.raises(ConfigError, match=next(iter(keys))):
            read_config(raw | keys, "config.json")


UNREADABLE = r"the weights are quantized by {}, which .*, or a GGUF"


@pytest.mark.parametrize(("key", "settings", "why"), [
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, UNREADABLE.format("bitsandbytes")),
    ("quantization_config", {"load_in_8bit": True}, UNREADABLE.format("bitsandbytes")),
    ("quantization_config", {"quant_method": "gptq", "bits": 4}, "'group_size' is missing"),
    ("quantization_config", {"bits": 2, "desc_act": False}, "bits = 2 is not supported, only 4, 8"),  # GPTQ
    ("quantization_config", {"bits": 8, "zero_point": True}, "bits = 8 is not supported, only 4"),  # AWQ
    ("quantization_config", {"config_groups": {}}, "config_groups must map names"),
    ("quantization_config", {"quant_method": "fp8"}, r"weight_block_size must be .* got None"),
    ("quantization_config", {"quant_method": 7}, UNREADABLE.format("7")),
    ("quantization_config", "int4", UNREADABLE.format("'int4'")),
    ("compression_config", {"config_groups": {}}, UNREADABLE.format("compressed-tensors")),
    ("quantization", {"group_size": 64, "bits": 4}, UNREADABLE.format("MLX")),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("ignore", [(), ("quantization_config", "quantization")])
def test_unsupported_quantization_raises(key, settings, why, ignore):
    """`--ignore-key` has no effect here: it would load numbers without their scales."""
    raw = write_config(CONFIGS["qwen3"]()) | {key: settings}
    with pytest.raises(ConfigError, match=rf"config.json: {key}: .*{why}"):
        take_quantization(dict(raw), "config.json", ignore)
    with pytest.raises(ConfigError, match=f"does not understand: {key}"):
        read_config(raw, "config.json", ignore)
