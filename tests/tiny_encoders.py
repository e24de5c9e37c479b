"""A tiny configuration of each text encoder family with all its features, and helpers for their tests."""

import json
from dataclasses import replace

import torch
from tiny import randomise_sharp

from glassformer.config import (
    AttentionConfig,
    LayerConfig,
    MaskedHeadConfig,
    MLPConfig,
    NormConfig,
    TextEncoderConfig,
    change,
)
from glassformer.models.embedder import Embedder
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.pooling import SentencePooling
from glassformer.nn.step import Step
from glassformer.text.files.vocab_files import BYTE_LEVEL, bpe_model, tokenizer_json, wordpiece_json
from glassformer.text.patterns import GPT2, byte_alphabet, byte_level
from glassformer.text.special_tokens import AddedToken
from glassformer.text.tokenizer import Tokenizer

NORM, SMALL = NormConfig("layer", 1e-2), NormConfig("layer", 1e-12)
LAYER = LayerConfig(
    AttentionConfig(4, 4, 12, bias=True, out_bias=True, causal=False),
    MLPConfig(72, "relu", gated=False, bias=True),
    NORM,
    ("post",),
)


def stack(family, **more):
    made = {"positions": "learned", "embed_norm": NORM} | more
    return TextEncoderConfig(97, 48, 64, (LAYER,) * 3, None, family=family, **made)


BERT = stack("bert", n_token_types=3, pooler=True, head=MaskedHeadConfig("relu", NORM), next_sentence=True)
ROBERTA = stack("roberta", n_token_types=2, position_offset=3, pooler=True, head=MaskedHeadConfig("gelu", NORM))
DISTIL = replace(
    stack("distilbert", embed_norm=SMALL, head=MaskedHeadConfig("relu", SMALL)),
    layers=(replace(LAYER, norm=SMALL),) * 3,
)
CONFIGS = {"bert": BERT, "roberta": ROBERTA, "distilbert": DISTIL}
CONFIGS["xlm-roberta"] = replace(ROBERTA, family="xlm-roberta")


def tiny_encoder(family, seed=0, **changes):
    config = CONFIGS[family]
    for path, value in changes.items():
        config = change(config, path, value)
    return randomise_sharp(TextEncoder(config), seed)


def some_ids(config, batch, length, seed=1):
    """Return random ids without padding."""
    first = config.position_offset
    return torch.randint(first, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def outputs(model, ids, lengths=None, **step):
    """Return the hidden states and the outputs of all heads."""
    made = Step.of(ids, lengths, **step)
    states = model(ids, made)
    found = {"states": states}
    if model.pooler is not None:
        found["pooled"] = model.pooled(states, made)
    if model.next_sentence is not None:
        found["follows"] = model.follows(found["pooled"], made)
    if model.head is not None:
        found["logits"] = model.logits(states, made)
    return found


WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    "a",
    "dog",
    "ate",
    "hat",
    "kitten",
    "##s",
    "##ed",
    ".",
    ",",
    "?",
    "query",
    ":",
]
NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [prefix + letter for prefix in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz"]


def wordpieces():
    """Return a WordPiece tokenizer like BERT's, with at most 97 tokens."""
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*NAMES, *WORDS, *LETTERS]))}
    assert len(vocab) <= 97
    named = {f"{key}_token": f"[{key.upper()}]" for key in ("pad", "unk", "cls", "sep", "mask")}
    layout = wordpiece_json(vocab, lowercase=True, strip_accents=None, split_chinese=True, names=named)
    return Tokenizer(json.dumps(layout), named | {"model_max_length": 512})


def bytes_of_roberta():
    """Return a byte-level BPE tokenizer like RoBERTa's, with 263 tokens: <s> A </s></s> B </s>."""
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    vocab = {
        token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *byte_alphabet().values(), "th", "Ġth"])
    }
    vocab["<mask>"] = len(vocab)
    added = [AddedToken(vocab[t], t, special=True, lstrip=t == "<mask>") for t in names.values()]
    frame = {"sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True, "add_prefix_space": False}
    layout = tokenizer_json(
        bpe_model(vocab, [("t", "h"), ("Ġ", "th")]), added, pre_tokenizer=byte_level(GPT2), decoder=BYTE_LEVEL,
        post_processor={"type": "RobertaProcessing"} | frame,
    )  # fmt: skip
    return Tokenizer(json.dumps(layout), names | {"sep_token": "</s>", "cls_token": "<s>"})


TOKENIZERS = {"bert": wordpieces, "roberta": bytes_of_roberta, "xlm-roberta": bytes_of_roberta}
TOKENIZERS["distilbert"] = wordpieces


def embedder(family, sentence=None, **changes):
    """Return an embedder that GGUF can describe except for its heads: rows divisible into blocks of 32, GELU."""
    config, words = CONFIGS[family], TOKENIZERS[family]()
    layer = replace(
        LAYER,
        attention=replace(LAYER.attention, head_dim=16),
        mlp=replace(LAYER.mlp, d_ff=96, activation="gelu"),
        norm=config.layers[0].norm,
    )
    config = replace(config, d_model=64, layers=(layer,) * 3, vocab_size=max(words.vocab_size + 1, 97), **changes)
    if config.head is not None:
        config = replace(config, head=replace(config.head, activation="gelu"))
    if config.position_offset:
        config = replace(config, position_offset=2)  # <pad> has id 1 in the tokenizer
    return Embedder(
        randomise_sharp(TextEncoder(config)), words, None if sentence is None else SentencePooling(sentence)
    )
