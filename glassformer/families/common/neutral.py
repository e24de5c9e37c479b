"""Keys of config.json that compute nothing, and the values at which other keys compute nothing.

`transformers`, training programs and older exports write keys that a family does not have. `IGNORED` are settings of
training, generation and programs. A key of `neutral_values` is accepted if it states what the model does anyway, and
any key if it is null.
"""

from __future__ import annotations

from typing import Any

from glassformer.config import ModelConfig, RecurrentConfig, TextEncoderConfig

IGNORED = frozenset(
    """_attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _name_or_path _num_labels
    activation_dropout adapters architectures attention_dropout attention_probs_dropout_prob attn_implementation
    attn_pdrop auto_map aux_loss_alpha bad_words_ids begin_suppress_tokens bos_token bos_token_id cache_implementation
    chunk_size_feed_forward classif_dropout classifier_dropout cls_token_id decoder_layerdrop decoder_start_token_id
    directionality diversity_penalty do_sample dropout dropout_rate dtype early_stopping embd_pdrop encoder_layerdrop
    encoder_no_repeat_ngram_size eos_token eos_token_id ep_size epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty extra_pos_embeddings finetuning_task force_bos_token_to_be_generated
    forced_bos_token_id forced_eos_token_id gradient_checkpointing guidance_scale hidden_dropout hidden_dropout_prob
    id2label init_std initializer_factor initializer_range keys_to_ignore_at_inference label2id language
    length_penalty low_memory mask_token_id max_length max_new_tokens max_window_layers min_length min_new_tokens min_p
    model_max_length n_ctx name no_repeat_ngram_size num_beam_groups num_beams num_mtp_layers num_nextn_predict_layers
    num_return_sequences output_attentions output_hidden_states output_past output_router_logits output_scores
    pad_token pad_token_id penalty_alpha pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
    pooler_size_per_head pooler_type prefix pretraining_tp problem_type qa_dropout remove_invalid_values
    renormalize_logits reorder_and_upcast_attn repetition_penalty resid_pdrop return_dict return_dict_in_generate
    router_aux_loss_coef router_jitter_noise save_step sep_token_id seq_aux seq_classif_dropout stop_strings
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens
    task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
    transformers.js_config transformers_version typical_p uniem_embedding_strategy unk_token unk_token_id
    unsloth_fixed unsloth_version use_bfloat16 use_cache use_flash_attention_2 use_flash_attn""".split()
)


def neutral_values(config: ModelConfig | RecurrentConfig | TextEncoderConfig) -> dict[str, tuple[Any, ...]]:
    """Return the values of keys that say what a model of this configuration computes anyway."""
    if isinstance(config, RecurrentConfig):
        return {}
    layer = config.layers[0]
    attention, mlp, n_layers = layer.attention, layer.mlp, len(config.layers)
    windows = {one.attention.window for one in config.layers}
    rope = attention.rope
    is_decoder = isinstance(config, ModelConfig)
    has_encoder = isinstance(config, ModelConfig) and config.encoder is not None
    kinds = [("full" if one.attention.window is None else "sliding") + "_attention" for one in config.layers]
    return {
        "add_cross_attention": (has_encoder,),
        "cross_attention_hidden_size": (),
        "is_decoder": (False, is_decoder),
        "is_encoder_decoder": (has_encoder,),
        "tie_encoder_decoder": (False,),
        "pruned_heads": ({},),
        "layer_types": (kinds,),
        "sliding_window": (next(iter(windows)),) if len(windows) == 1 else (),
        "use_sliding_window": (windows != {None},),
        "num_hidden_layers": (n_layers,),
        "head_dim": (attention.head_dim,),
        "num_key_value_heads": (attention.n_kv_heads,),
        "attention_bias": (attention.out_bias,) if attention.bias == attention.out_bias else (),
        "qkv_bias": (attention.bias,),
        "mlp_bias": (mlp.bias,),
        "partial_rotary_factor": (1.0,) if rope is not None and rope.dim is None else (),
        "rope_theta": (rope.theta,) if rope is not None else (),
        "clip_qkv": (),
        "alibi": (False,),
        "use_qk_norm": (attention.qk_norm is not None,),
        "qk_layernorm": (attention.qk_norm is not None,),
        "use_mrope": (False,),
        "residual_multiplier": (1.0,),
        "logits_scaling": (1.0,),
        "embedding_multiplier": (1.0,) if config.embed_scale == 1 else (),
        "position_embedding_type": ("absolute",) if config.positions == "learned" else (),
        "tie_word_embeddings": (config.tied_head,) if isinstance(config, ModelConfig) else (True,),
    }
