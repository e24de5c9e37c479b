"""A tiny model of every family with two traces, for tests of views."""

from dataclasses import replace

from generate.scripted import make_tokenizer
from tiny import encoder_decoder_config, randomise, randomise_sharp, tiny
from tiny_encoders import CONFIGS as ENCODERS
from tiny_families import DECODERS
from tiny_translators import CONFIGS as SEQ2SEQ_CONFIGS

from glassformer.config import RecurrentConfig
from glassformer.models.embedder import Embedder
from glassformer.models.language_model import LanguageModel
from glassformer.models.translator import Translator
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder

TEXT, OTHER, SOURCE = "the cat sat", "the cat ran", "a dog ate"
ATTENTION = {"no attention": None, "additive": "additive", "dot": "dot", "general": "general"}
KINDS = {
    "decoders": DECODERS,
    "encoder-decoders": ("pair", *SEQ2SEQ_CONFIGS),
    "recurrent encoder-decoders": tuple(ATTENTION),
    "encoders": tuple(ENCODERS),
}


def translator(config):
    """Return a translator with this configuration; its vocabularies have the tokenizer's size."""
    tokenizer = make_tokenizer()
    size = tokenizer.vocab_size
    family = "pair" if config.family == "tiny" else config.family
    config = replace(config, family=family, vocab_size=size, encoder=replace(config.encoder, vocab_size=size))
    return Translator(randomise_sharp(EncoderDecoder(config)), tokenizer)


def subject(kind, family):
    """Return (model, trace, another trace)."""
    tokenizer = make_tokenizer()
    size = tokenizer.vocab_size
    if kind == "decoders":
        model = LanguageModel(tiny(family, vocab_size=size), tokenizer)
    elif kind == "encoders":
        model = Embedder(randomise_sharp(TextEncoder(replace(ENCODERS[family], vocab_size=size))), tokenizer)
    elif kind == "encoder-decoders":
        model = translator(encoder_decoder_config("pre") if family == "pair" else SEQ2SEQ_CONFIGS[family]())
    else:
        config = RecurrentConfig(size, size, 10, 12, attention=ATTENTION[family])
        model = Translator(randomise(RecurrentEncoderDecoder(config)), tokenizer)
    if kind in ("decoders", "encoders"):
        return model, model.trace(TEXT), model.trace(OTHER)
    return model, model.trace(SOURCE, TEXT), model.trace(SOURCE, OTHER)
