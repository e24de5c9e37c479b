"""Parity of encoder-decoders with `transformers`: logits, every block, files and generated text."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from generate.scripted import END, make_tokenizer
from hf_models import CaptureTap, hf_random
from safetensors.torch import load_file, save_file
from test_fields import (
    OTHER_VALUES,
    SIMILAR_ACTIVATIONS,
    assert_key_is_used,
    config_fields,
    count_rejected_keys,
    float32_equivalent,
    random_state,
)
from tiny import TOLERANCE, assert_near, encode_source, random_ids, randomise_sharp, relative_change, run, run_cached
from tiny_translators import CONFIGS, SEQ2SEQ_FAMILIES

import glassformer
from glassformer.cache.dense import DenseCache
from glassformer.cli import main
from glassformer.config import MLPConfig, change
from glassformer.errors import CheckpointError, ConfigError, RequestError
from glassformer.families import read_config, write_config
from glassformer.families.common.family import IGNORED
from glassformer.formats import load_decoder, load_seq2seq, save_model
from glassformer.formats.generation_config import read_generation_config
from glassformer.generate.beam_search import BeamSearch, search
from glassformer.generate.request import TokenConstraints
from glassformer.inspect.capture.derive import derive
from glassformer.models.translator import Translator
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.step import Step
from glassformer.text.tokenizer import Tokenizer

SILU = MLPConfig(72, "silu")
VARIANTS = {
    "bart": [
        {},
        {"embed_scale": 1.0, "encoder.embed_scale": 1.0},
        {"layers.*.mlp.activation": "relu", "encoder.layers.*.mlp.activation": "relu"},
    ],
    "marian": [
        {},
        {"embed_scale": 1.0, "encoder.embed_scale": 1.0},
        {"layers.*.mlp.activation": "silu", "encoder.layers.*.mlp.activation": "silu"},
    ],
    "t5": [
        {},
        {"relative.max_distance": 9, "encoder.relative.max_distance": 9},
    ],
    "flan": [{}, {"layers.*.mlp": SILU, "encoder.layers.*.mlp": SILU}],
}
CASES = [(family, changes) for family in SEQ2SEQ_FAMILIES for changes in VARIANTS[family]]
LENGTHS = (50, 23, 1)  # longer than the largest relative distance with a bucket of its own


def make_model(family, changes=None, seed=0):
    """Return the tiny model of a family, with changes: paths of `change`, in which * is every layer."""
    config = CONFIGS[family]()
    for path, value in (changes or {}).items():
        n = config.encoder.n_layers if path.startswith("encoder.") else config.n_layers
        for i in range(n if "*" in path else 1):
            config = change(config, path.replace("*", str(i)), value)
    return randomise_sharp(EncoderDecoder(config), seed=seed)


@torch.no_grad()
def hf_run(hf, sources, ids, lengths=None):
    """Return the logits and the output of every block, those of the encoder first."""
    outs, core = [], getattr(hf, "model", hf)
    blocks = [
        b for side in (core.encoder, core.decoder) for b in (side.layers if hasattr(side, "layers") else side.block)
    ]
    hooks = [
        b.register_forward_hook(lambda _m, _a, o: outs.append(o[0] if isinstance(o, tuple) else o)) for b in blocks
    ]
    mask = None if lengths is None else (torch.arange(sources.shape[1]) < torch.tensor(lengths)[:, None]).long()
    logits = hf.eval()(input_ids=sources, attention_mask=mask, decoder_input_ids=ids).logits
    for hook in hooks:
        hook.remove()
    return logits, outs


def assert_same_run(model, hf):
    """Compare the logits and the residual stream after every block, for sources of different lengths."""
    sources, ids = random_ids(model.encoder.config, 3, 50), random_ids(model.config, 3, 45, seed=2)
    logits, blocks = hf_run(hf, sources, ids, LENGTHS)
    captured = CaptureTap(".resid_post")
    source = encode_source(model, sources, LENGTHS, tap=captured)
    assert_near(run(model, ids, source=source, tap=captured), logits)
    assert len(blocks) == len(captured) == model.encoder.config.n_layers + model.config.n_layers
    for (name, ours), theirs in zip(captured.items(), blocks, strict=True):
        for b, n in enumerate(LENGTHS if name.startswith("encoder.") else (45,) * 3):
            assert_near(ours[b, :n], theirs[b, :n])


@pytest.mark.parametrize(("family", "changes"), CASES, ids=str)
def test_transformers_opens_saved_model(family, changes, tmp_path):
    model = make_model(family, changes)
    save_model(model, tmp_path / "ours")
    hf, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(hf).__name__ == json.loads((tmp_path / "ours/config.json").read_text())["architectures"][0]
    assert not any(info.values()), f"transformers complains: {info}"
    assert_same_run(model, hf)

    hf.save_pretrained(tmp_path / "theirs")
    reloaded = load_seq2seq(tmp_path / "theirs")
    assert reloaded.config == model.config
    ours, theirs = dict(model.named_parameters()), dict(reloaded.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    a, b = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in b), "a tensor changed in the round trip"


SIZES = {
    "vocab_size": 89, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 56, "decoder_ffn_dim": 40, "max_position_embeddings": 60,
}  # fmt: skip
HF_CONFIGS = {
    "bart": lambda: transformers.BartConfig(**SIZES, scale_embedding=True),
    "marian": lambda: transformers.MarianConfig(
        **SIZES, pad_token_id=88, decoder_start_token_id=88, activation_function="swish"
    ),
    "t5": lambda: transformers.T5Config(
        vocab_size=89, d_model=32, d_kv=10, d_ff=56, num_layers=2, num_decoder_layers=3, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=20, feed_forward_proj="gelu",
    ),
    "flan": lambda: transformers.T5Config(
        vocab_size=89, d_model=32, d_kv=10, d_ff=56, num_layers=2, num_decoder_layers=3, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    ),
}  # fmt: skip


def random_hf_model(family):
    hf = hf_random(transformers.AutoModelForSeq2SeqLM.from_config(HF_CONFIGS[family]()))
    if hasattr(hf, "final_logits_bias"):
        hf.final_logits_bias.normal_()
    with torch.no_grad():
        for stack in (hf.model.encoder, hf.model.decoder) if family == "marian" else ():
            stack.embed_positions.weight.copy_(stack.embed_positions.create_weight())
        (hf.shared if hasattr(hf, "shared") else hf.model.shared).weight[:] *= 2
    return hf


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_model_of_transformers_round_trips(family, tmp_path):
    hf = random_hf_model(family)
    hf.save_pretrained(tmp_path / "theirs")
    model = load_seq2seq(tmp_path / "theirs")
    assert_same_run(model, hf)
    save_model(model, tmp_path / "ours")
    a, b = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    if family == "flan":  # transformers stores one shared table; save_model also stores the head's
        a["lm_head.weight"] = a["shared.weight"]
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a), "a tensor changed in the round trip"
    configs = [
        read_config(json.loads((tmp_path / side / "config.json").read_text()), "") for side in ("theirs", "ours")
    ]
    assert configs[0] == configs[1] == model.config
    reloaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")
    sources, ids = random_ids(model.config, 2, 9), random_ids(model.config, 2, 7)
    assert torch.equal(hf_run(reloaded, sources, ids)[0], hf_run(hf, sources, ids)[0])


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_all_problems_are_in_one_error(family, tmp_path):
    """A missing tensor, an unused one, a wrong shape, and a tensor stored twice."""
    save_model(make_model(family), tmp_path, shard=100_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {name: load_file(tmp_path / name) for name in set(index.values())}
    names = sorted(name for name in index if "block" in name or "layers" in name)
    missing = next(name for name in names if "encoder.block" in name or "encoder.layers" in name)
    truncated, duplicated = names[0], names[-1]
    shards[index[missing]].pop(missing)
    shards[index[truncated]][truncated] = shards[index[truncated]][truncated][1:].clone()
    other = next(name for name in shards if name != index[duplicated])
    shards[other][duplicated] = shards[index[duplicated]][duplicated].clone()
    shards[other]["decoder.wobble"] = torch.zeros(3)
    for name, tensors in shards.items():
        save_file(tensors, tmp_path / name, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_seq2seq(tmp_path)
    message = str(caught.value)
    for part in (f"missing: {missing} (fills encoder.", f"shape: {truncated} is", f"stored twice: {duplicated} is in",
                  "not used: decoder.wobble"):  # fmt: skip
        assert part in message, message
    raw = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ConfigError, match="not understand: a_new_key"):
        read_config(raw | {"a_new_key": 1}, "config.json")


@pytest.mark.parametrize("family", ["bart", "marian"])
def test_checkpoint_without_head_and_with_copied_tables_opens(family, tmp_path):
    """Tensors of the bare model: no prefix, no logits bias, the table under three names, and Marian's positions."""
    hf = random_hf_model(family)
    hf.final_logits_bias.zero_()
    hf.model.save_pretrained(tmp_path)
    raw = load_file(tmp_path / "model.safetensors")
    table = raw["shared.weight"]
    raw |= {f"{side}.embed_tokens.weight": table.clone() for side in ("encoder", "decoder")}
    if family == "marian":
        raw |= {f"{side}.embed_positions.weight": torch.zeros(60, 32) for side in ("encoder", "decoder")}
    save_file(raw, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same_run(load_seq2seq(tmp_path), hf)
    raw["encoder.embed_tokens.weight"][3, 3] += 1
    save_file(raw, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"not used: encoder\.embed_tokens\.weight"):
        load_seq2seq(tmp_path)


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_cached_and_uneven_batches_equal_single_uncached_sequences(family):
    model = make_model(family)
    sources, ids = random_ids(model.encoder.config, 3, 50), random_ids(model.config, 3, 40, seed=2)
    source = encode_source(model, sources, LENGTHS)
    expected = run(model, ids, source=source)
    for chunks in ([40], [1] * 40, [7, 1, 20, 12]):
        cache = DenseCache.of(model.config, 3, 40, source=source)
        assert_near(run_cached(model, ids, chunks, cache), expected)
    for b, n in enumerate(LENGTHS):
        assert_near(expected[b], run(model, ids[b : b + 1], source=encode_source(model, sources[b : b + 1, :n]))[0])
    together = run(model, ids, lengths=(40, 9, 1), source=source)
    for b, n in enumerate((40, 9, 1)):
        assert_near(together[b, :n], expected[b, :n])


def test_derived_probabilities_include_the_relative_bias():
    """Probabilities recomputed from captured values agree with the forward pass, on both sides."""
    model = make_model("t5")
    sources, ids = random_ids(model.encoder.config, 1, 30), random_ids(model.config, 1, 30, seed=2)
    captured = CaptureTap("")
    source_step = Step.of(sources, tap=captured)
    source = model.encode(sources, source_step)
    target_step = Step.of(ids, source=source, tap=captured)
    model(ids, target_step)
    for prefix, side in (("encoder.", source_step), ("", target_step)):
        name = f"{prefix}blocks.1.attn.probs"
        spec = model.get_submodule(name.removesuffix(".probs")).spec
        assert derive(model, name, captured, side.view(spec)).error < 1e-5
    spec = model.blocks[1].cross.spec
    assert derive(model, "blocks.1.cross.probs", captured, target_step.view(spec)).error < 1e-5


FIXED = {  # cannot change alone: both sides share it, or it defines a decoder, an encoder or cross-attention
    "vocab_size", "d_model", "encoder.vocab_size", "encoder.d_model", "encoder.layers.1.cross",
    "layers.1.attention.causal", "encoder.layers.1.attention.causal", "encoder.layers.1.attention.window",
    "layers.1.parallel", "layers.1.shared_norm", "encoder.layers.1.shared_norm",
    *(f"layers.1.cross.{name}" for name in ("causal", "rope", "sinks", "window")),
    *(f"{where}.qk_norm_over" for where in ("layers.1.attention", "layers.1.cross", "encoder.layers.1.attention")),
    *(f"{where}.latent" for where in ("layers.1.attention", "layers.1.cross", "encoder.layers.1.attention")),
    "layers.1.attention.rope", "encoder.layers.1.attention.rope",
}  # fmt: skip
UNGATED, POST_NORM = {"layers.1.mlp.limit", "layers.1.mlp.up_plus_one"}, {"layers.1.parallel", "layers.1.cross"}
SHARED_BIAS = {"position_offset", "positions", "layers.1.attention.n_heads", "layers.1.attention.window"}
FIXED_IN = {  # of each family, on both sides
    "bart": {"positions", "relative", *UNGATED, *POST_NORM},
    "marian": {"position_offset", "context_length", "relative", *UNGATED, *POST_NORM},
    "t5": {"context_length", *SHARED_BIAS, *UNGATED},
    "flan": {"context_length", *SHARED_BIAS},
}


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_every_field_matters(family):
    """Change any one field on either side: a parameter changes its shape, or the logits by at least 100 tolerances.

    `context_length` is only a limit: it changes the shape of a table of learned positions and nothing else.
    """
    model = make_model(family)
    config, state = model.config, dict(model.named_parameters())
    sources, ids = random_ids(model.encoder.config, 1, 30), random_ids(model.config, 1, 30, seed=2)
    logits, tried, n_compared = run(model, ids, source=encode_source(model, sources)), set(), 0
    for path, key, old in config_fields(config):
        for value in OTHER_VALUES[key]:
            if value in (old, float32_equivalent(old)) or (key == "context_length" and config.positions != "learned"):
                continue
            try:
                other = EncoderDecoder(change(config, path, value))
            except ConfigError:
                continue  # rejected, not ignored
            tried.add(path)
            parameters = dict(other.named_parameters())
            new = state if parameters.keys() <= state.keys() else random_state(other) | state
            if any(p.shape != new[name].shape for name, p in parameters.items()):
                continue
            other.load_state_dict(
                {name: new[name] for name in parameters}, strict=False
            )  # a shared table has two names
            difference, n_compared = (
                relative_change(run(other, ids, source=encode_source(other, sources)), logits),
                n_compared + 1,
            )
            minimum = 1e-5 if {value, old} == SIMILAR_ACTIVATIONS else 100 * TOLERANCE
            assert difference >= minimum, f"{path}: {old!r} -> {value!r} changes the logits by only {difference:.1e}"
    untried = {path for path, *_ in config_fields(config)} - tried
    assert untried <= FIXED | FIXED_IN[family] | {f"encoder.{path}" for path in FIXED_IN[family]}
    assert n_compared > 60


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_every_config_key_is_used(family, tmp_path):
    raw = write_config(CONFIGS[family]())
    config = read_config(raw, "config.json")
    for key in raw.keys() - IGNORED:
        assert_key_is_used(raw, key, config)
    for value in (None, 0, -1, 1.5, "12", [], {}, True):
        assert count_rejected_keys(raw, value) > 0
    HF_CONFIGS[family]().save_pretrained(tmp_path)
    theirs = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["of a model"]}
    assert read_config(write_config(read_config(theirs, "")), "") == read_config(theirs, "")


COMMON_KEYS = {
    "architectures": ["..."],
    "transformers_version": "4.40.0",
    "use_cache": True,
    "is_encoder_decoder": True,
}
FAIRSEQ = {
    "activation_dropout": 0.0, "add_bias_logits": False, "add_final_layer_norm": False, "attention_dropout": 0.0,
    "bos_token_id": 0, "classif_dropout": 0.0, "classifier_dropout": 0.0, "decoder_layerdrop": 0.0, "dropout": 0.1,
    "encoder_layerdrop": 0.0, "gradient_checkpointing": False, "id2label": {}, "init_std": 0.02, "label2id": {},
    "normalize_before": False, "num_hidden_layers": 6, "encoder_layers": 6, "decoder_layers": 6,
}  # fmt: skip


def test_published_configs_are_read():
    """Read config.json of an OPUS-MT translator, BART base, T5 small and Flan-T5 base."""
    marian = read_config(COMMON_KEYS | FAIRSEQ | {
        "model_type": "marian", "activation_function": "swish", "bad_words_ids": [[58100]], "d_model": 512,
        "decoder_attention_heads": 8, "decoder_ffn_dim": 2048, "decoder_start_token_id": 58100,
        "decoder_vocab_size": 58101, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048, "eos_token_id": 0,
        "forced_eos_token_id": 0, "max_length": 512, "max_position_embeddings": 512, "normalize_embedding": False,
        "num_beams": 6, "pad_token_id": 58100, "scale_embedding": True, "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True, "vocab_size": 58101,
    }, "")  # fmt: skip
    assert (marian.embed_scale, marian.layers[0].mlp.activation) == (512**0.5, "silu")
    bart = read_config(COMMON_KEYS | FAIRSEQ | {
        "model_type": "bart", "activation_function": "gelu", "d_model": 768, "decoder_attention_heads": 12,
        "decoder_ffn_dim": 3072, "decoder_start_token_id": 2, "early_stopping": True, "encoder_attention_heads": 12,
        "encoder_ffn_dim": 3072, "eos_token_id": 2, "forced_eos_token_id": 2, "forced_bos_token_id": 0,
        "max_position_embeddings": 1024, "no_repeat_ngram_size": 3, "normalize_embedding": True, "num_beams": 4,
        "pad_token_id": 1, "scale_embedding": False, "task_specific_params": {}, "vocab_size": 50265,
        "_num_labels": 3, "extra_pos_embeddings": 0, "force_bos_token_to_be_generated": True, "output_past": True,
        "prefix": " ", "min_length": 56, "length_penalty": 2.0,
    }, "")  # fmt: skip
    assert (bart.embed_scale, bart.position_offset, bart.context_length) == (1.0, 2, 1024)
    t5 = {
        "d_ff": 2048, "d_kv": 64, "d_model": 512, "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
        "initializer_factor": 1.0, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512, "num_heads": 8,
        "num_layers": 6, "output_past": True, "pad_token_id": 0, "relative_attention_num_buckets": 32,
        "task_specific_params": {}, "vocab_size": 32128,
    }  # fmt: skip
    small = read_config(COMMON_KEYS | t5, "")
    assert (small.tied_head, small.head_scale, small.layers[0].mlp.gated) == (True, 512**-0.5, False)
    flan = COMMON_KEYS | t5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    for keys in ({}, {"tie_word_embeddings": True, "scale_decoder_outputs": False, "dense_act_fn": "gelu_new"}):
        config = read_config(flan | keys, "")
        assert (config.tied_head, config.head_scale, config.layers[0].mlp) == (False, 1.0, MLPConfig(2048, "gelu_tanh"))


REJECTED = [
    ("bart", {"normalize_before": True}), ("bart", {"encoder_attention_heads": 5}), ("bart", {"is_decoder": True}),
    ("bart", {"tie_word_embeddings": False}),
    ("marian", {"decoder_vocab_size": 50}),
    ("t5", {"feed_forward_proj": "gated-tanh"}), ("t5", {"is_gated_act": True}),
    ("t5", {"relative_attention_num_buckets": 6}), ("t5", {"relative_attention_max_distance": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "keys"), REJECTED, ids=str)
def test_unsupported_setting_raises_config_error(family, keys):
    with pytest.raises(ConfigError, match=next(iter(keys)).removeprefix("relative_attention_num_").split("_")[-1]):
        read_config(write_config(CONFIGS[family]()) | keys, "config.json")


def test_load_decoder_rejects_an_encoder_decoder(tmp_path):
    save_model(make_model("t5"), tmp_path)
    with pytest.raises(CheckpointError, match="glassformer translate"):
        load_decoder(tmp_path)


@torch.no_grad()
def varied_model(family):
    """Return a model whose greedy text varies: a head tied to a random table repeats one token."""
    if family in ("t5", "flan"):
        model = randomise_sharp(EncoderDecoder(CONFIGS[family]()), seed=2)
        model.embed.weight.mul_(0.05)
        for name, p in model.named_parameters():
            if name.endswith("mlp.down.weight"):  # without what it adds to all tokens alike
                p.sub_(p.mean(1, keepdim=True)).mul_(6)
            p.mul_(0.3 if name.endswith("cross.o.weight") else 3 if name.endswith("attn.o.weight") else 1)
        return model
    model = make_model(family, {"embed_scale": 1.0, "encoder.embed_scale": 1.0}, seed=int(family == "marian"))
    model.embed.weight.mul_(0.3)
    for name, p in model.named_parameters():
        p.mul_(6 if name.endswith("mlp.down.weight") else 0 if name.endswith("bias") else 1)
    return model


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("family", ["bart", "flan"])
def test_no_repeat_ngram_and_min_length_equal_transformers(family, n, tmp_path):
    """Greedy, where the most likely text ends early and repeats n-grams, and with beam search."""
    model = varied_model(family)
    begin, max_tokens = 95, 30
    sources = [random_ids(model.config, 1, size, seed=size)[0].tolist() for size in (9, 14)]
    unconstrained = search(model, sources, BeamSearch(1, 1, max_tokens), begin=begin, end=96)
    end = unconstrained[0][0].ids[3]
    save_model(model, tmp_path, extra={"pad_token_id": 1, "eos_token_id": end, "decoder_start_token_id": begin})
    hf = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    changed = False
    for settings, min_length in (
        (BeamSearch(1, 1, max_tokens), 1),
        (BeamSearch(1, 1, max_tokens), 13),
        (BeamSearch(3, 3, max_tokens, 0.0), max_tokens + 2),
    ):
        constraints = TokenConstraints(min_length=min_length, no_repeat_ngram=n)
        ours = search(model, sources, settings, begin=begin, end=end, constraints=constraints)
        changed |= ours != search(
            model, sources, settings, begin=begin, end=end, constraints=replace(constraints, no_repeat_ngram=0)
        )
        for source, results in zip(sources, ours, strict=True):
            out = hf.generate(
                torch.tensor([source]), attention_mask=torch.ones(1, len(source), dtype=torch.long),
                max_new_tokens=max_tokens, do_sample=False, num_beams=settings.beam, num_return_sequences=settings.n,
                length_penalty=0.0, decoder_start_token_id=begin, eos_token_id=end, forced_eos_token_id=None,
                forced_bos_token_id=None, pad_token_id=1, min_length=min_length, no_repeat_ngram_size=n,
            )  # fmt: skip
            assert [[token for token in row if token != end] for row in out[:, 1:].tolist()] == [
                list(result.ids) for result in results
            ]
            assert all(result.finish == "length" or len(result.ids) + 1 >= min_length for result in results)
    assert changed


def test_text_stops_when_every_token_is_banned():
    model = varied_model("bart")
    constraints = TokenConstraints(banned=tuple(range(3, 97)), no_repeat_ngram=1)
    ((result,),) = search(model, [[5, 6, 7]], BeamSearch(1, 1, 20), begin=2, end=96, constraints=constraints)
    assert sorted(result.ids) == [0, 1]
    assert result.finish == "stop"


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_generated_tokens_equal_transformers(family, tmp_path):
    """48 greedy tokens and the three best beams of two sources: batched here, one at a time in transformers.

    Scores have no length penalty and no text ends, so both implementations define the same search.
    """
    model = varied_model(family)
    begin, end, max_tokens = 95, 96, 48
    save_model(model, tmp_path, extra={"pad_token_id": 1, "eos_token_id": end, "decoder_start_token_id": begin})
    hf = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    sources = [random_ids(model.config, 1, n, seed=n)[0].tolist() for n in (9, 14)]
    common = {"decoder_start_token_id": begin, "eos_token_id": None, "forced_eos_token_id": None, "pad_token_id": 1}
    for settings in (BeamSearch(1, 1, max_tokens), BeamSearch(3, 3, max_tokens, 0.0)):
        ours = search(model, sources, settings, begin=begin, end=end, constraints=TokenConstraints(banned=(end, 7)))
        for source, results in zip(sources, ours, strict=True):
            out = hf.generate(
                torch.tensor([source]), attention_mask=torch.ones(1, len(source), dtype=torch.long),
                max_new_tokens=max_tokens, do_sample=False, num_beams=settings.beam, num_return_sequences=settings.n,
                length_penalty=0.0, bad_words_ids=[[end], [7]], **common,
            )  # fmt: skip
            assert out[:, 1:].tolist() == [list(result.ids) for result in results]
        assert all(len(set(results[0].ids)) > 3 for results in ours), "degenerate text"


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_exhaustive_beam_equals_transformers_when_texts_end(family, tmp_path):
    """The beam holds every text of two tokens: both sides return the same texts with the same probabilities.

    Narrower beams differ: only transformers refills a beam when a text ends, and its scores use another length.
    """
    model, begin, end = varied_model(family), 95, 96
    save_model(model, tmp_path, extra={"pad_token_id": 1, "eos_token_id": end, "decoder_start_token_id": begin})
    hf = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    source = random_ids(model.config, 1, 9)
    (ours,) = search(
        model,
        source.tolist(),
        BeamSearch(97, 97, 2, 0.0),
        begin=begin,
        end=end,
        constraints=TokenConstraints(banned=(1,)),
    )
    out = hf.generate(
        source, max_new_tokens=2, do_sample=False, num_beams=97, num_return_sequences=97, length_penalty=0.0,
        decoder_start_token_id=begin, eos_token_id=end, forced_eos_token_id=None, pad_token_id=1, bad_words_ids=[[1]],
        early_stopping=False, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    theirs = {
        tuple(t for t in row if t not in (1, end)): score
        for row, score in zip(out.sequences[:, 1:].tolist(), out.sequences_scores.tolist(), strict=True)
    }
    logprobs = {result.ids: result.logprob for result in ours}
    best = sorted(logprobs, key=lambda ids: -logprobs[ids])[:40]
    assert any(result.finish == "stop" for result in ours)
    assert set(best) <= set(theirs)
    for ids in best:
        assert abs(logprobs[ids] - theirs[ids]) < 1e-4


def test_forced_tokens_equal_transformers(tmp_path):
    """The first token and, at the maximum length, the last are forced; neither counts in the log-probability."""
    model = varied_model("bart")
    save_model(model, tmp_path, extra={"eos_token_id": 96, "decoder_start_token_id": 96})
    hf = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    source = random_ids(model.config, 1, 9)
    for beam in (1, 3):
        (results,) = search(
            model,
            source.tolist(),
            BeamSearch(beam, beam, 12, 0.0),
            begin=96,
            end=96,
            constraints=TokenConstraints(5, 96),
        )
        out = hf.generate(
            source, max_new_tokens=12, do_sample=False, num_beams=beam, num_return_sequences=beam, length_penalty=0.0,
            forced_bos_token_id=5, forced_eos_token_id=96, return_dict_in_generate=True, output_scores=True,
            early_stopping=False,
        )  # fmt: skip
        theirs = [[t for t in row if t != 1] for row in out.sequences[:, 1:].tolist()]
        assert results[0].ids[0] == 5
        if not any(result.finish == "stop" for result in results):
            assert [[*result.ids, 96] for result in results] == theirs
        if beam > 1:
            assert abs(results[0].logprob - out.sequences_scores[0].item()) < 1e-4


def make_ending_tokenizer():
    """Return a tokenizer that appends the end token to a text, as those of these families do."""
    plain = make_tokenizer()
    spec, end = json.loads(plain.backend.json), plain.eos_id
    pieces = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}]
    special = {END: {"id": END, "ids": [end], "tokens": [END]}}
    processor = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": special}
    return Tokenizer(json.dumps(spec | {"post_processor": processor}), {"eos_token": END, "pad_token": END})


def config_with_vocabulary(family, tokenizer):
    """Return the configuration of a family with the vocabulary size of a tokenizer."""
    config, size = CONFIGS[family](), tokenizer.vocab_size
    return replace(config, vocab_size=size, encoder=change(config.encoder, "vocab_size", size))


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_translation_of_saved_folder_equals_transformers(family, tmp_path, capsys):
    """Load, translate, save, load: the tokenizer ends sources; generation_config.json sets how targets begin."""
    tokenizer = make_ending_tokenizer()
    special = {
        "decoder_start_token_id": 5, "eos_token_id": tokenizer.eos_id, "pad_token_id": 3, "bos_token_id": 6,
        "forced_bos_token_id": 70, "bad_words_ids": [[3], [9]],
    }  # fmt: skip
    Translator(
        randomise_sharp(EncoderDecoder(config_with_vocabulary(family, tokenizer))), tokenizer, generation_config=special
    ).save(tmp_path)
    hf = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    translator = glassformer.load(tmp_path)
    translator.save(tmp_path / "again")
    for loaded in (translator, glassformer.load(tmp_path / "again")):
        for text in ("the cat sat", "a dog"):
            encoded = theirs(text, return_tensors="pt")
            assert encoded.input_ids[0, -1] == tokenizer.eos_id
            out = hf.generate(**encoded, max_new_tokens=12, do_sample=False, num_beams=1)[0, 1:].tolist()
            (translation,) = loaded.translate(text, max_tokens=12)
            assert list(translation.targets[0].ids) == [t for t in out if t != tokenizer.eos_id]
            assert translation.targets[0].ids[0] == 70
            assert 9 not in translation.targets[0].ids
            alignment = loaded.align(text, translation.targets[0].ids, ended=False)
            assert alignment.error < 1e-5
            assert alignment.source_tokens[-1] == END
        with pytest.raises(RequestError, match="the text is empty"):
            loaded.encode("")
    main(["translate", str(tmp_path), "a dog", "--max-tokens", "12"])
    assert capsys.readouterr().out.strip() == translation.text.strip()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eos_token_id": [1, 2]}, "eos_token_id must be one token id"),
        ({"bad_words_ids": [[1, 2]]}, "bad_words_ids must be a list of lists of one token id"),
        ({"forced_bos_token_id": "1"}, "forced_bos_token_id must be one token id"),
    ],
)
def test_unsupported_generation_config_raises(keys, message):
    with pytest.raises(CheckpointError, match=message):
        Translator(
            EncoderDecoder(config_with_vocabulary("t5", make_ending_tokenizer())),
            make_ending_tokenizer(),
            generation_config=keys,
        )


def test_generation_settings_of_config_json(tmp_path):
    """generation_config.json takes precedence over config.json; the older name of the first token is accepted."""
    legacy = {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "force_bos_token_to_be_generated": True,
        "num_beams": 4,
        "max_length": 9,
    }
    (tmp_path / "config.json").write_text(json.dumps(legacy))
    expected = {"bos_token_id": 0, "eos_token_id": 2, "forced_bos_token_id": 0, "num_beams": 4, "max_length": 9}
    assert read_generation_config(tmp_path) == expected
    (tmp_path / "generation_config.json").write_text('{"forced_bos_token_id": 5, "num_beams": 2, "top_k": null}')
    assert read_generation_config(tmp_path) == expected | {"forced_bos_token_id": 5, "num_beams": 2}
