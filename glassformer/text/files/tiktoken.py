"""tiktoken's rank files, converted to the contents of a `tokenizer.json` that gives the same ids."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.files.vocab_files import BYTE_LEVEL, JSONObject, bpe_model, tokenizer_json
from glassformer.text.patterns import CL100K, GPT2, LLAMA3, O200K, QWEN2, byte_alphabet, byte_level
from glassformer.text.special_tokens import MAX_ID, AddedToken

END = "<|endoftext|>"
_RESERVED = "<|reserved_special_token_{}|>"
_LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", *map(_RESERVED.format, range(4)), "<|start_header_id|>"]
_LLAMA3_SPECIAL += ["<|end_header_id|>", _RESERVED.format(4), "<|eot_id|>", *map(_RESERVED.format, range(5, 251))]
_MAX_BYTES = 1024  # the time to find the merges of a token grows with the square of its length
_FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")

# Number of ranks -> (pattern, special tokens, config): a rank file contains neither the pattern nor the special tokens,
# so the known encodings are recognized by their size.
ENCODINGS: dict[int, tuple[str, dict[str, int], dict[str, Any]]] = {
    50256: (GPT2, {END: 50256}, {"eos_token": END}),
    100256: (CL100K, {END: 100257} | {t: 100258 + i for i, t in enumerate(_FIM)} | {"<|endofprompt|>": 100276},
             {"eos_token": END}),
    128000: (LLAMA3, {t: 128000 + i for i, t in enumerate(_LLAMA3_SPECIAL)},
             {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "add_bos_token": True}),
    151643: (QWEN2, {END: 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}, {"eos_token": END}),
    199998: (O200K, {END: 199999, "<|endofprompt|>": 200018}, {"eos_token": END}),
}  # fmt: skip


def parse_tiktoken(data: bytes) -> dict[bytes, int]:
    """Parse tiktoken's file: one token per line, in base64, followed by a space and its rank, which is its id.

    Raises:
        TokenizerError: A line is malformed, two tokens have the same rank, or a single byte has no token.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            word, rank = line.split()
            token = base64.b64decode(word, validate=True)
            ranks[token] = int(rank)
            if not (0 <= ranks[token] <= MAX_ID and 0 < len(token) <= _MAX_BYTES):
                raise ValueError
        except (ValueError, binascii.Error) as error:
            if line.strip():
                raise TokenizerError(
                    f"line {number} must be a base64 token of 1 to {_MAX_BYTES} bytes and its rank, 0 to {MAX_ID}, "
                    f"got {line[:60]!r}"
                ) from error
    if len(set(ranks.values())) < len(ranks):
        raise TokenizerError("two tokens have the same rank")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise TokenizerError(f"{len(missing)} of the 256 bytes have no token; the first is {missing[0]}")
    return ranks


def tiktoken_json(ranks: Mapping[bytes, int], pattern: str, added: Iterable[AddedToken]) -> JSONObject:
    """Return a byte-level BPE that merges as tiktoken does: first the neighbours that form the lowest-ranked token.

    Every split of a token into two others is therefore a merge, in the order of the token's rank.

    Raises:
        TokenizerError: An added token has another id in the vocabulary.
    """
    to_char = str.maketrans({chr(byte): char for byte, char in byte_alphabet().items()})

    def spell(token: bytes) -> str:
        return token.decode("latin-1").translate(to_char)

    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [(token[:at], token[at:]) for at in range(1, len(token))]
        pairs = [(a, b) for a, b in splits if a in ranks and b in ranks]
        if len(pairs) > 1:
            last = _last_merge(token, ranks)
            pairs.sort(key=lambda pair: (pair != last, ranks[pair[0]], ranks[pair[1]]))
        merges += [(spell(a), spell(b)) for a, b in pairs]
    vocab = {spell(token): rank for token, rank in ranks.items()}
    added = list(added)
    for token in added:  # the library would renumber added tokens that are not in the vocabulary, without gaps
        if vocab.setdefault(token.text, token.id) != token.id:
            raise TokenizerError(
                f"the added token {token.text!r} has the id {token.id}, but the vocabulary gives it {vocab[token.text]}"
            )
    model = bpe_model(vocab, merges, ignore_merges=True)
    return tokenizer_json(model, added, pre_tokenizer=byte_level(pattern), decoder=BYTE_LEVEL)


def _last_merge(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """Return the two tokens whose merge completes `token` when its bytes are merged by rank."""
    parts, none = [bytes([byte]) for byte in token], len(ranks) << 8
    pair_ranks = [ranks.get(a + b, none) for a, b in pairwise(parts)]
    while len(parts) > 2:
        at = pair_ranks.index(min(pair_ranks))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del pair_ranks[at]
        for near in (at - 1, at):
            if 0 <= near < len(pair_ranks):
                pair_ranks[near] = ranks.get(parts[near] + parts[near + 1], none)
    return (parts[0], parts[1]) if len(parts) == 2 else None
