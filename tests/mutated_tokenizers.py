"""Tokenizer files with seeded damage: each loads and encodes, or raises an error that names the folder.

`CHECKS` has one function per format for `mutate.run_mutations`.
"""

import base64
import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import sentencepiece
from mutate import mutate_bytes, mutate_json, mutate_json_file, mutate_lines
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Core

from glassformer.errors import TokenizerError
from glassformer.formats.gguf.tokenizer_read import tokenizer_from_gguf
from glassformer.formats.gguf.tokenizer_write import lost_in_gguf, tokenizer_to_gguf
from glassformer.text.files.load import load_tokenizer
from glassformer.text.tokenizer import Tokenizer

Files = dict[str, bytes]
LINES = ["the cat sat on the mat", "a dog ran to the red house", "naïve façade 12:30 猫"] * 10
TEXTS = ("the cat", " a  dog\n", "<s>naïve 猫</s> <mask> [MASK] <|end|>", "", "\0\U0001f469\u200d")
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<mask>")
ENTRY = {
    "content": "<|end|>",
    "lstrip": True,
    "rstrip": False,
    "single_word": False,
    "normalized": False,
    "special": True,
}
TEMPLATE = "{% for m in messages %}<|end|>{{ m.content }}{% endfor %}"


def dump(value: object) -> bytes:
    return json.dumps(value).encode()


def config(**changes: object) -> Files:
    """Return the files beside a vocabulary."""
    roles = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "unk_token": "<unk>"}
    return {
        "tokenizer_config.json": dump({**roles, "model_max_length": 10**30, "chat_template": TEMPLATE, **changes}),
        "special_tokens_map.json": dump({**roles, "pad_token": "<pad>", "additional_special_tokens": ["<|x|>"]}),
        "added_tokens.json": dump({}),
        "config.json": dump({"vocab_size": 1000, "model_type": "llama", "text_config": {"vocab_size": 1000}}),
    }


def bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"), ("Ġ", "the")]
    return {t: i for i, t in enumerate([*SPECIAL, *letters, *map("".join, merges)])}, merges


def byte_level() -> bytes:
    vocab, merges = bpe()
    core = Core(models.BPE(vocab, merges))
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s+|[^\s\p{N}]+"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.normalizer, core.decoder = normalizers.NFC(), decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    core.post_processor = processors.Sequence(
        [processors.ByteLevel(), processors.RobertaProcessing(("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]))]
    )
    return core.to_str().encode()


def byte_fallback() -> bytes:
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁acehtmosd", "th", "▁th", "▁the"]
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e")]
    core = Core(
        models.BPE({t: i for i, t in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    core.add_special_tokens(list(SPECIAL))
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return core.to_str().encode()


def unigram() -> bytes:
    processor = sentencepiece.SentencePieceProcessor(model_proto=spm())
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]
    core = Core(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return core.to_str().encode()


def word_piece() -> bytes:
    core = Core(models.WordPiece({t: i for i, t in enumerate(VOCAB_TXT.split())}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.decoder, core.post_processor = decoders.WordPiece(), processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    core.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return core.to_str().encode()


VOCAB_TXT = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\ncat\n##s\na\n##a\ndog\n猫\n"


@cache
def spm(**options: object) -> bytes:
    out = io.BytesIO()
    options = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1, **options}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=out, **options)
    return out.getvalue()


def ranks() -> bytes:
    tokens = [*(bytes([byte]) for byte in range(256)), b"th", b"the", b" the", b"cat"]
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))


def marian() -> Files:
    processor = sentencepiece.SentencePieceProcessor(model_proto=spm())
    pieces = ["</s>", "<unk>", *(processor.id_to_piece(i) for i in range(3, processor.get_piece_size())), "<pad>"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return {"source.spm": spm(), "target.spm": spm(), "vocab.json": dump(vocab)}


@cache
def files(name: str) -> Files:
    """Return the undamaged files of a format."""
    vocab, merges = bpe()
    lines = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
    decoder = {"added_tokens_decoder": {str(len(vocab)): ENTRY}}
    match name:
        case "byte-level":
            return {"tokenizer.json": byte_level(), **config(**decoder, add_bos_token=True)}
        case "byte-fallback":
            return {"tokenizer.json": byte_fallback(), **config(tokenizer_class="LlamaTokenizer")}
        case "unigram":
            return {"tokenizer.json": unigram(), **config()}
        case "wordpiece-json":
            return {"tokenizer.json": word_piece(), "tokenizer_config.json": dump({"mask_token": "[MASK]"})}
        case "sentencepiece":
            return {"tokenizer.model": spm(), **config(legacy=False), "added_tokens.json": dump({"<|end|>": 100})}
        case "sentencepiece-bpe":
            options = {
                "model_type": "bpe",
                "byte_fallback": True,
                "vocab_size": 320,
                "user_defined_symbols": "<sep>,▁▁",
                "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False,
            }
            return {"tokenizer.model": spm(**options), **config(tokenizer_class="T5Tokenizer", extra_ids=3)}
        case "gpt2":
            return {
                "vocab.json": dump(vocab),
                "merges.txt": lines.encode(),
                **config(tokenizer_class="RobertaTokenizer"),
            }
        case "wordpiece":
            bert = dump(
                {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "added_tokens_decoder": {"12": ENTRY}}
            )
            return {"vocab.txt": VOCAB_TXT.encode(), "tokenizer_config.json": bert}
        case "ranks":
            pattern = {"pattern": r"\p{L}+|\p{N}+|[^\p{L}\p{N}]", "added_tokens_decoder": {"260": ENTRY}}
            return {"a.tiktoken": ranks(), "tokenizer_config.json": dump(pattern)}
        case "marian":
            roles = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "separate_vocabs": False}
            return marian() | {"tokenizer_config.json": dump(roles)}
    raise AssertionError(name)


FORMATS = ("byte-level", "byte-fallback", "unigram", "wordpiece-json", "sentencepiece", "sentencepiece-bpe", "gpt2",
           "wordpiece", "ranks", "marian")  # fmt: skip


def save(folder: Path, contents: Files) -> Path:
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return folder


def use(tokenizer: Tokenizer) -> None:
    """Call what models call. The results must agree with each other."""
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert all(0 <= index < tokenizer.vocab_size for index in ids)
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)
        found = tokenizer.encode_offsets(text, parse_special=True)
        assert found.ids == tokenizer.encode(text, parse_special=True)
        assert all(0 <= start <= end <= len(text) for start, end in found.offsets)
        tokenizer.backend.encode_continuations([text])


def mutate_file(name: str, data: bytes, rng: random.Random) -> bytes:
    kind = name.rpartition(".")[2]
    mutate = {"json": mutate_json_file, "txt": mutate_lines, "tiktoken": mutate_lines}.get(kind, mutate_bytes)
    return mutate(data, rng)


@cache
def folder() -> Path:
    """Return a folder of this process; the parent's temporary folders are removed at its end."""
    import atexit

    path = Path(tempfile.mkdtemp(prefix="mutated-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def check_folder(name: str, rng: random.Random) -> None:
    """Load a folder with one damaged file, and use it. The file of the vocabulary is chosen as often as all others."""
    contents = dict(files(name))
    first, *others = contents
    chosen = first if rng.random() < 0.5 else rng.choice(others)
    contents[chosen] = mutate_file(chosen, contents[chosen], rng)
    shutil.rmtree(folder())
    folder().mkdir()
    save(folder(), contents)
    try:
        tokenizer = load_tokenizer(folder())
    except TokenizerError as error:
        assert str(folder()) in str(error), error  # noqa: PT017
        str(error).encode()  # can be printed
        return
    use(tokenizer)
    tokenizer.save(folder() / "saved")
    again = load_tokenizer(folder() / "saved")
    assert again.encode_batch(TEXTS, parse_special=True) == tokenizer.encode_batch(TEXTS, parse_special=True)
    lost_in_gguf(tokenizer)


GGUF = ("byte-fallback", "wordpiece-json", "sentencepiece", "sentencepiece-bpe", "gpt2")


@cache
def gguf_metadata(name: str) -> dict:
    with tempfile.TemporaryDirectory() as path:
        metadata = tokenizer_to_gguf(load_tokenizer(save(Path(path), files(name))), 700)
    return json.loads(json.dumps(metadata)) | {"general.architecture": "llama"}


def check_gguf(rng: random.Random) -> None:
    """Read the tokenizer of damaged metadata."""
    metadata = gguf_metadata(rng.choice(GGUF))
    damaged = mutate_json(metadata, rng)
    if isinstance(damaged, dict):
        use(tokenizer_from_gguf(damaged))


CHECKS: dict[str, Callable[[random.Random], None]] = {
    **{name: partial(check_folder, name) for name in FORMATS},
    "gguf": check_gguf,
}


def check_any(rng: random.Random) -> None:
    """Run the check of a random format."""
    CHECKS[rng.choice(sorted(CHECKS))](rng)
