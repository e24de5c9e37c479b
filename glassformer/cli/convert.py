"""`glassformer convert`: write a model as a Hugging Face folder or as a GGUF file."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from glassformer.cli.common import IgnoreKeys, Json, print_json, progress, say, working
from glassformer.errors import RequestError

if TYPE_CHECKING:
    import torch

    from glassformer.formats import Checkpoint
    from glassformer.formats.save import GgufKind

Kind = Literal["auto", "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q4_0"]
Flag = Annotated[bool, Parameter(negative="")]


def convert(
    src: str,
    dst: Path,
    *,
    to: Kind = "auto",
    shard_gb: float = 5.0,
    overwrite: Flag = False,
    offline: Flag = False,
    json: Json = False,
    ignore_key: IgnoreKeys = (),
) -> None:
    """Write the model SRC to DST: a GGUF file if DST ends in .gguf, otherwise a Hugging Face folder.

    Parameters
    ----------
    src
        Any MODEL: a folder, a run, a file, or a name on the hub.
    to
        The data type of the stored weights; auto keeps that of SRC. Q8_0, Q6_K, Q4_K_M and Q4_0 are only for GGUF:
        about 8.5, 6.6, 4.9 and 4.5 bits per weight. A matrix whose rows do not fit the blocks gets another type.
    shard_gb
        The maximum size of one weights file of a folder, in gigabytes.
    overwrite
        Replace an existing file, or the model in an existing folder; its other files are preserved.
    offline
        Do not use the network.
    """
    import torch

    from glassformer.families import family_of
    from glassformer.formats import find_model, open_checkpoint
    from glassformer.formats.gguf.header import read_header
    from glassformer.formats.gguf.metadata import gguf_family
    from glassformer.formats.gguf.tensor_types import fallback_types

    to_gguf, dtypes = dst.suffix == ".gguf", {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if not to_gguf and to not in ("auto", *dtypes):
        raise RequestError(f"a folder can be written as auto, {', '.join(dtypes)}; {to} needs a DST that ends in .gguf")
    if shard_gb <= 0:
        raise RequestError(f"shard_gb must be above 0, got {shard_gb}")
    found = find_model(src, offline=offline)
    if dst.exists() and dst.resolve() in (found.resolve(), found.resolve().parent):
        raise RequestError(f"DST {dst} is the same as SRC: use another DST")
    if dst.exists() and not overwrite and (to_gguf or not dst.is_dir() or any(dst.iterdir())):
        raise RequestError(f"DST {dst} exists already: use another DST, or --overwrite")
    left_out, other_types = [], {}
    with working("converting", quiet=json or to_gguf):
        checkpoint = open_checkpoint(found, ignore_key)
        if not to_gguf:
            _write_folder(checkpoint, dst, dtypes.get(to, _folder_dtype(checkpoint)), round(shard_gb * 1e9))
    if to_gguf:
        gguf_family(family_of(checkpoint.config))  # raises ConfigError for a family that GGUF cannot describe
        stored = next((name for name, dtype in dtypes.items() if dtype == checkpoint.dtype), "F32")
        kind: GgufKind = stored if to == "auto" else to  # pyright: ignore[reportAssignmentType]
        with warnings.catch_warnings(), progress(quiet=json) as advance:
            warnings.simplefilter("ignore", UserWarning)  # the command reports what is lost itself
            left_out = _write_gguf(checkpoint, dst, kind, lambda done, total: advance(done, total, "converting"))
        other_types = fallback_types(read_header(dst).tensors, kind)
    files = [path for path in ([dst] if to_gguf else sorted(dst.rglob("*"))) if path.is_file()]
    sizes = {str(path): path.stat().st_size for path in files}
    if json:
        print_json({"source": str(found), "files": sizes, "left_out": left_out, "other_types": other_types})
        return
    if left_out:
        say(f"left out, because GGUF cannot store it: {', '.join(left_out)}")
    if other_types:
        types, first = ", ".join(sorted(set(other_types.values()))), next(iter(other_types))
        where = f"{len(other_types)}, the first is {first}"
        say(f"matrices stored as {types} because their rows do not fit the blocks of {to}: {where}")
    for name, size in sizes.items():
        say(f"{name}: {size:,} bytes")


def _folder_dtype(checkpoint: Checkpoint) -> torch.dtype | None:
    """The dtype of a folder's tensors under `auto`: a GGUF file mixes types, a folder has one. None keeps each type."""
    import torch

    if not checkpoint.metadata:
        return None
    quantized = any(not checkpoint.reader.mapped(name) for name in checkpoint.reader)
    return torch.float32 if quantized else checkpoint.dtype


def _write_folder(checkpoint: Checkpoint, dst: Path, dtype: torch.dtype | None, shard: int) -> None:
    from glassformer.formats import load_decoder, load_seq2seq, load_text_encoder, save_model
    from glassformer.formats.save import replacing_model
    from glassformer.formats.sentence_transformers import MODULES, write_pooling
    from glassformer.models.language_model import LanguageModel
    from glassformer.models.translator import save_translator

    tokenizer = checkpoint.tokenizer()
    if checkpoint.kind == "encoder":
        with replacing_model(dst) as new:
            save_model(load_text_encoder(checkpoint, dtype=dtype), new, shard=shard)
            if tokenizer is not None:
                tokenizer.save(new)
            if checkpoint.metadata or (checkpoint.path / MODULES).exists():
                write_pooling(checkpoint.pooling().to(dtype), new, checkpoint.config.d_model)
    elif checkpoint.kind == "decoder":
        lm = LanguageModel(load_decoder(checkpoint, dtype=dtype), tokenizer, end_ids=checkpoint.end_token_ids())
        lm.save(dst, shard=shard)
    else:
        model = load_seq2seq(checkpoint, dtype=dtype)
        save_translator(model, tokenizer, checkpoint.generation_config(), dst, shard=shard)


def _write_gguf(checkpoint: Checkpoint, dst: Path, kind: GgufKind, progress: Callable[[int, int], None]) -> list[str]:
    """Write a GGUF file. Returns the parts of the model and of its tokenizer that are not stored in the file."""
    from glassformer.formats import load_decoder, load_seq2seq, load_text_encoder
    from glassformer.formats.gguf.save import left_out, save_gguf
    from glassformer.formats.gguf.tokenizer_write import lost_in_gguf
    from glassformer.models.embedder import Embedder
    from glassformer.models.language_model import LanguageModel
    from glassformer.models.translator import Translator

    tokenizer, source = checkpoint.tokenizer(), str(checkpoint.path)
    lost = [] if tokenizer is None else lost_in_gguf(tokenizer)
    if checkpoint.kind == "decoder":
        lm = LanguageModel(load_decoder(checkpoint), tokenizer, end_ids=checkpoint.end_token_ids())
        lm.save_gguf(dst, kind, progress=progress)
        return lost
    if checkpoint.kind == "encoder":
        model = load_text_encoder(checkpoint)
        if tokenizer is None:
            save_gguf(model, dst, kind, progress=progress)
        else:
            Embedder(model, tokenizer, checkpoint.pooling(), path=source).save_gguf(dst, kind, progress=progress)
        return left_out(model) + lost
    if tokenizer is None:
        raise RequestError(f"{source} has no tokenizer, and the GGUF file of an encoder-decoder needs one")
    generation = checkpoint.generation_config()
    Translator(load_seq2seq(checkpoint), tokenizer, path=source, generation_config=generation).save_gguf(
        dst, kind, progress=progress
    )
    return lost
