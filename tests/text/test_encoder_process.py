"""Regular expressions of a tokenizer.json that may need exponential time: limits, and the same ids as without them."""

import copy
import json
import os
import pickle
import signal
import threading
import time

import pytest
import tokenizers

from glassformer.errors import TokenizerError
from glassformer.text import encoder_process, hf_tokenizer, patterns
from glassformer.text.encoder_process import EncoderPool
from glassformer.text.hf_tokenizer import HFTokenizer
from glassformer.text.patterns import find_regexes, is_linear
from glassformer.text.tokenizer import Tokenizer

EVIL = "(a+)+b"
EVIL_TEXT = ("a" * 23 + " ") * 960  # 23 KB; each word needs less than the library's own limit of steps
ORDINARY = r"(?:\p{Lu}|\p{Ll})+(?=\s|$)|\s?\p{N}{1,2}(?!\p{N})|(?i:'s|'t)|[^\s\p{L}\p{N}]+?|\s+|."
TEXT = "It's 12345 naïve <s>words, 日本語 and\n\n  more<unk> é\u0301 😀 </s>!"


def layout(pattern: str, **parts) -> dict:
    alphabet = patterns.byte_alphabet()
    vocab = {char: index for index, char in enumerate(alphabet.values())} | {"wo": 256, "<s>": 257, "</s>": 258}
    flags = {"lstrip": False, "rstrip": False, "single_word": False}
    frame = {"id": "<s>", "ids": [257], "tokens": ["<s>"]}
    sequence = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    processor = {"type": "TemplateProcessing", "single": [start, sequence[0]], "pair": [start, *sequence]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocab[name], "content": name, "special": True, "normalized": False, **flags}
            for name in ("<s>", "</s>")
        ],
        "normalizer": None,
        "pre_tokenizer": patterns.splits(pattern),
        "post_processor": processor | {"special_tokens": {"<s>": frame}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["w", "o"]]},
    } | parts


def open_backend(pattern: str, **parts) -> HFTokenizer:
    return HFTokenizer(json.dumps(layout(pattern, **parts)))


def idle(backend: HFTokenizer) -> list:
    assert isinstance(backend._encoder, EncoderPool)
    return backend._encoder._idle


KNOWN = [
    *(patterns.GPT2, patterns.QWEN2, patterns.LLAMA3, patterns.CL100K, patterns.O200K, patterns.TEKKEN, patterns.WORD),
    patterns.SEED_CODER,
    *find_regexes([patterns.FALCON, patterns.DEEPSEEK_CODER, patterns.DEEPSEEK_LLM, patterns.DEEPSEEK_V3]),
]
LINEAR = [
    " {2,}", r"\s?\p{L}+", "[0-9][0-9][0-9]", r"\p{N}{1,3}", r"[^\s\p{L}\p{N}]+", r"\w+|[^\w\s]+", "a?", "▁", r"\[a\]",
    r"<\|end\|>|'s|'t|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
]  # fmt: skip
COSTLY = [
    EVIL, "a*a*b", "a?a?a", "a+b", "a+?b", r"(a)\1", "a+$", "a|b+c", "(?:a|aa)+", "a{1,9}{1,9}", "a{100}", r"\X+",
    "a++", r"\Ra", "[[a]+]", "[]a+]b", "[^]a+]b", "a|", "", "|a", ".*a", "x" * 1001, "a|" * 499 + "(", r"[\c]+a*]b",
    r"a(?=b)",
]  # fmt: skip


@pytest.mark.parametrize("pattern", KNOWN + LINEAR)
def test_known_and_simple_patterns_run_in_this_process(pattern):
    assert is_linear(pattern)


@pytest.mark.parametrize("pattern", COSTLY)
def test_other_patterns_need_a_child_process(pattern):
    assert not is_linear(pattern)


def test_regexes_of_all_parts_are_found():
    """Split and Replace, nested, of the normalizer and the pre_tokenizer."""
    replace = {"type": "Replace", "pattern": {"Regex": EVIL}, "content": "x"}
    nested = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Sequence", "normalizers": [replace]}]}
    assert not idle(open_backend(" ?x", normalizer=nested))
    assert not idle(open_backend(EVIL))
    assert not isinstance(open_backend(" ?x")._encoder, EncoderPool)


def test_results_equal_those_in_this_process_and_of_the_library(monkeypatch):
    child = open_backend(ORDINARY)
    assert not idle(child)
    monkeypatch.setattr(hf_tokenizer, "is_linear", lambda pattern: True)
    here = open_backend(ORDINARY)
    assert not isinstance(here._encoder, EncoderPool)
    library = tokenizers.Tokenizer.from_str(json.dumps(layout(ORDINARY)))
    assert child.encode([TEXT], parse_special=True)[0] == library.encode(TEXT, add_special_tokens=False).ids
    for special in (False, True):
        assert child.encode([TEXT, "", "wo"], parse_special=special) == here.encode(
            [TEXT, "", "wo"], parse_special=special
        )
        assert child.encode_offsets(TEXT, parse_special=special) == here.encode_offsets(TEXT, parse_special=special)
    assert child.encode([TEXT], parse_special=False) != child.encode([TEXT], parse_special=True)
    assert child.encode_pairs([(TEXT, "wo <s>"), ("", "a")]) == here.encode_pairs([(TEXT, "wo <s>"), ("", "a")])
    assert child.encode_continuations([TEXT, "wo"]) == here.encode_continuations([TEXT, "wo"])
    assert child.token_table() == here.token_table()
    assert (child.prefix_ids, child.vocab, child.added_tokens) == (here.prefix_ids, here.vocab, here.added_tokens)
    assert len(idle(child)) == 1, "one child answers all calls"


def test_copies_and_surrogates():
    tokenizer = Tokenizer(json.dumps(layout(ORDINARY)))
    ids = tokenizer.encode(TEXT)
    assert pickle.loads(pickle.dumps(tokenizer)).encode(TEXT) == ids == copy.deepcopy(tokenizer).encode(TEXT)
    with pytest.raises(TokenizerError, match=r"character 2 is a lone surrogate \(U\+D800\)"):
        tokenizer.encode("ab\ud800")
    assert tokenizer.decode(tokenizer.encode(TEXT, bare=True)) == TEXT


def test_costly_match_ends_with_an_error_that_names_pattern_and_limit(monkeypatch):
    monkeypatch.setattr(encoder_process, "CPU_SECONDS", 0.3)
    tokenizer = Tokenizer(json.dumps(layout(EVIL)))
    for encode in (tokenizer.encode, tokenizer.encode_offsets):
        with pytest.raises(TokenizerError) as error:
            encode(EVIL_TEXT)
        assert str(error.value) == (
            "tokenizer.json: 23040 characters cannot be encoded with the pattern '(a+)+b': "
            "stopped: it takes more than 0.5304 s of processor time"
        )
    assert tokenizer.decode(tokenizer.encode("aab word", bare=True)) == "aab word", "a new child answers"


def test_parts_of_a_text_between_special_tokens_have_one_limit_together(monkeypatch):
    monkeypatch.setattr(encoder_process, "CPU_SECONDS", 0.3)
    tokenizer = Tokenizer(json.dumps(layout(EVIL)), {"mask_token": "<s>"})
    part = "a" * 20 + " "  # takes a tenth of the limit
    assert tokenizer.encode_masked(f"{part}<s>{part}").count(257) == 2, "the BOS, and the mask"
    with pytest.raises(TokenizerError, match=r"6300 characters cannot be encoded .* more than 0\.363 s"):
        tokenizer.encode_masked("<s>".join([part] * 301))


def test_match_beyond_the_limit_of_the_library_is_an_error_that_names_the_pattern():
    with pytest.raises(TokenizerError, match=r"3000 characters cannot .* '\(a\+\)\+b': .*(retry-limit|more than)"):
        Tokenizer(json.dumps(layout(EVIL))).encode("a" * 3000)


def test_added_token_that_a_costly_normalizer_changes_does_not_block_loading(monkeypatch):
    """The library normalizes added tokens when it opens a tokenizer."""
    monkeypatch.setattr(encoder_process, "OPEN_SECONDS", 0.5)
    replace = {"type": "Replace", "pattern": {"Regex": EVIL}, "content": "x"}
    token = layout("x")["added_tokens"][0] | {"id": 259, "content": EVIL_TEXT, "normalized": True, "special": False}
    backend = open_backend("x", normalizer=replace, added_tokens=[*layout("x")["added_tokens"], token])
    assert backend.vocab[EVIL_TEXT] == 259
    with pytest.raises(TokenizerError, match=r"cannot be opened with the pattern '\(a\+\)\+b': stopped: .* 0\.5 s"):
        backend.encode(["x"], parse_special=False)


def test_ctrl_c_ends_the_child_and_the_next_call_has_its_own_result(monkeypatch):
    backend = open_backend(EVIL)
    expected = backend.encode(["aab word"], parse_special=False)
    (child,) = idle(backend)
    monkeypatch.setattr(encoder_process, "CPU_SECONDS", 60.0)
    interrupt = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        backend.encode([EVIL_TEXT], parse_special=False)
    assert not child.running
    assert backend.encode(["aab word"], parse_special=False) == expected


def test_other_threads_encode_while_a_match_is_costly(monkeypatch):
    backend, problems = open_backend(EVIL), []
    expected = backend.encode(["ab word"], parse_special=False)
    (child,) = idle(backend)
    monkeypatch.setattr(encoder_process, "CPU_SECONDS", 60.0)

    def run() -> None:
        with pytest.raises(TokenizerError) as error:
            backend.encode([EVIL_TEXT], parse_special=False)
        problems.append(str(error.value))

    thread = threading.Thread(target=run)
    thread.start()
    while idle(backend):
        time.sleep(0.001)
    assert backend.encode(["ab word"], parse_special=False) == expected
    assert thread.is_alive(), "the second child answered first"
    child._child.kill()
    thread.join()
    assert "ended with status -9" in problems[0]


def test_children_end_with_their_tokenizer():
    backend = open_backend(ORDINARY)
    backend.encode(["a"], parse_special=False)
    (child,) = idle(backend)
    del backend
    assert not child.running
