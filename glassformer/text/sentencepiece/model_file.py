"""Parser and serializer of SentencePiece's `.model` file, without the library.

The file is one protocol buffer, `ModelProto` of SentencePiece's `sentencepiece_model.proto`. A message on the wire is a
sequence of fields: a tag (field number * 8 + wire type) and a value. The value is a varint (0), 8 bytes (1), a length
and that many bytes (2), or 4 bytes (5). This module parses the fields that encoding and decoding need. It ignores the
training options, and rejects models whose other options would change ids.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from glassformer.errors import TokenizerError

UNIGRAM, BPE = 1, 2  # TrainerSpec.model_type; 3 is words, 4 characters
KINDS = {UNIGRAM: "unigram", BPE: "bpe"}

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece.type, and GGUF's token_type


@dataclass(frozen=True)
class SentencePiecePiece:
    """An entry of the vocabulary: its text (▁ for a space), its log-probability or rank, and its type."""

    text: str
    score: float = 0.0
    type: int = NORMAL


@dataclass(frozen=True)
class SentencePieceModel:
    """The contents of a `.model` file.

    kind: UNIGRAM or BPE
    charsmap: the compiled normalization rules; empty if text is not changed
    dummy_prefix: whether a space is added before a text (after it, if `suffix`), so that all words look the same
    remove_extra_spaces: whether leading, trailing and repeated spaces are removed
    escape: whether spaces are written as ▁, as in almost all models
    """

    pieces: Sequence[SentencePiecePiece]
    kind: int = UNIGRAM
    byte_fallback: bool = False
    charsmap: bytes = b""
    dummy_prefix: bool = True
    remove_extra_spaces: bool = True
    escape: bool = True
    suffix: bool = False
    bos: str = "<s>"
    eos: str = "</s>"

    def check(self) -> None:
        """Raise TokenizerError for a model that the library would reject too."""
        if self.kind not in KINDS:
            supported = ", ".join(KINDS.values())
            raise TokenizerError(f"SentencePiece models of type {self.kind} are not supported, only {supported}")
        seen: dict[tuple[str, bool], int] = {}
        for index, piece in enumerate(self.pieces):
            if not NORMAL <= piece.type <= BYTE:
                raise TokenizerError(f"piece {index} {piece.text!r} has the unknown type {piece.type}")
            if not piece.text or "\0" in piece.text:
                raise TokenizerError(f"piece {index} is empty or contains a NUL: {piece.text!r}")
            first = seen.setdefault((piece.text, piece.type in (UNKNOWN, CONTROL, BYTE)), index)
            if first != index:
                raise TokenizerError(f"piece {index} {piece.text!r} is a duplicate of piece {first}")
        n_unknown = sum(piece.type == UNKNOWN for piece in self.pieces)
        if n_unknown != 1:
            raise TokenizerError(f"the model must have one piece of type unknown, but it has {n_unknown}")
        found = {piece.text for piece in self.pieces if piece.type == BYTE}
        if found != (set(byte_pieces()) if self.byte_fallback else set()):
            raise TokenizerError(
                f"byte_fallback is {self.byte_fallback}, which requires {256 * self.byte_fallback} byte pieces, "
                f"but the model has {len(found)}"
            )


def byte_pieces() -> list[str]:
    """Return the texts of the 256 byte pieces: <0x00> to <0xFF>."""
    return [f"<0x{byte:02X}>" for byte in range(256)]


# ---- parsing


def parse_sentencepiece(data: bytes) -> SentencePieceModel:
    """Parse the contents of a `.model` file. Raises TokenizerError if they are malformed or not supported."""
    try:
        return _parse_model(data)
    except (IndexError, struct.error) as error:
        raise TokenizerError("not a SentencePiece model, or a truncated one") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"not a SentencePiece model: text in it is not UTF-8 ({error.reason})") from error


def _parse_model(data: bytes) -> SentencePieceModel:
    pieces, options = [], {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(_message(value)))
            score = struct.unpack("<f", _message(piece[2]))[0] if 2 in piece else 0.0
            pieces.append(SentencePiecePiece(_text(piece.get(1, b"")), score, _number(piece.get(3, NORMAL))))
        elif number == 2:
            trainer = dict(_fields(_message(value)))
            options |= {
                "kind": _number(trainer.get(3, UNIGRAM)),
                "suffix": bool(_number(trainer.get(24, 0))),
                "byte_fallback": bool(_number(trainer.get(35, 0))),
                "bos": _text(trainer.get(46, b"<s>")),
                "eos": _text(trainer.get(47, b"</s>")),
            }
        elif number == 3:
            options |= _parse_normalizer(_message(value))
        elif number == 5 and _parse_normalizer(_message(value)).get("charsmap"):
            raise TokenizerError("rules for decoded text (denormalizer_spec) are not supported")
    if not pieces:
        raise TokenizerError("not a SentencePiece model: it has no pieces")
    model = SentencePieceModel(tuple(pieces), **options)
    model.check()
    return model


def _parse_normalizer(data: bytes) -> dict[str, Any]:
    spec = dict(_fields(data))
    known = (1, 2, 3, 4, 5, 6)  # 1: its name; 6: the source of the compiled rules
    # Forks of SentencePiece have more options (Marian's: 7 encode_case); one that is off or empty changes nothing.
    unknown = [n for n, value in spec.items() if n not in known and (value if isinstance(value, int) else any(value))]
    if unknown:
        raise TokenizerError(f"field {min(unknown)} of normalizer_spec is not supported")
    return {
        "charsmap": bytes(_message(spec.get(2, b""))),
        "dummy_prefix": bool(_number(spec.get(3, 1))),
        "remove_extra_spaces": bool(_number(spec.get(4, 1))),
        "escape": bool(_number(spec.get(5, 1))),
    }


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of each field: int for a varint, else bytes. Raises IndexError if truncated."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
                yield tag >> 3, value
                continue
            case 1:
                length = 8
            case 2:
                length, at = _varint(data, at)
            case 5:
                length = 4
            case wire:
                raise TokenizerError(f"not a SentencePiece model: wire type {wire} at byte {at}")
        if at + length > len(data):
            raise IndexError
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at `at` (7 bits per byte, lowest first) and its end."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
        if shift > 63:
            raise IndexError


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TokenizerError("not a SentencePiece model: a number in place of a message")
    return value


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise TokenizerError("not a SentencePiece model: a message in place of a number")
    return value


def _text(value: int | bytes) -> str:
    return _message(value).decode("utf-8")


# ---- serialization


def serialize_sentencepiece(model: SentencePieceModel) -> bytes:
    """Return the contents of the `.model` file of a model."""
    pieces = [
        _bytes(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score) + _int(3, piece.type)
        for piece in model.pieces
    ]
    names = [(46, model.bos), (47, model.eos)]
    trainer = _int(3, model.kind) + _int(4, len(pieces)) + _int(24, model.suffix) + _int(35, model.byte_fallback)
    for field, value in ((40, UNKNOWN), (41, model.bos), (42, model.eos)):
        ids = [i for i, p in enumerate(model.pieces) if value == (p.type if field == 40 else p.text)]
        trainer += _int(field, ids[0] if ids else -1)
    trainer += b"".join(_bytes(field, name.encode()) for field, name in names)
    normalizer = _bytes(1, b"user_defined" if model.charsmap else b"identity") + _bytes(2, model.charsmap)
    normalizer += _int(3, model.dummy_prefix) + _int(4, model.remove_extra_spaces) + _int(5, model.escape)
    return b"".join(_bytes(1, piece) for piece in pieces) + _bytes(2, trainer) + _bytes(3, normalizer)


def _int(field: int, value: int) -> bytes:
    return _wire(field << 3) + _wire(value & (1 << 64) - 1)


def _bytes(field: int, value: bytes) -> bytes:
    return _wire(field << 3 | 2) + _wire(len(value)) + value


def _wire(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
