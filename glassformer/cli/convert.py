"""`glassformer convert`: a model as a Hugging Face folder, or as a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from glassformer.cli.common import IgnoreKeys, Json, print_json, say, working
from glassformer.errors import RequestError

if TYPE_CHECKING:
    import torch

    from glassformer.formats.checkpoint import Checkpoint
    from glassformer.text.tokenizer import Tokenizer

Kind = Literal["auto", "F32", "F16", "BF16", "Q8_0", "Q4_0"]
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
    """Write the model SRC as DST: a GGUF file where DST ends in .gguf, else a Hugging Face folder.

    Parameters
    ----------
    src
        Any MODEL: a folder, a run, a file, a name on the hub.
    to
        What numbers are written as; auto keeps them as they are. Q8_0 and Q4_0 are GGUF's: blocks of 32 numbers with
        a scale each.
    shard_gb
        A folder's weights are cut into files of at most so many gigabytes.
    overwrite
        Write over a file, or into a folder, that is there.
    offline
        Use no network.
    """
    import torch

    from glassformer.config import TextEncoderConfig
    from glassformer.families import family_of
    from glassformer.formats import load_model, load_pair_model
    from glassformer.formats.checkpoint import open_checkpoint
    from glassformer.formats.find import ends_of, find, tokenizer_of
    from glassformer.formats.gguf.metadata import in_gguf
    from glassformer.formats.load import reads_source
    from glassformer.models.language_model import LanguageModel
    from glassformer.models.translator import Translator, save_translator, special_of

    to_gguf, dtypes = dst.suffix == ".gguf", {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if not to_gguf and to not in ("auto", *dtypes):
        raise RequestError(f"a folder's weights are auto, {', '.join(dtypes)}; {to} needs a DST that ends in .gguf")
    if shard_gb <= 0:
        raise RequestError(f"shard-gb must be above 0, got {shard_gb}")
    found = find(src, offline=offline)
    if dst.exists() and dst.resolve() in (found.resolve(), found.resolve().parent):
        raise RequestError(f"{dst} is what SRC is read from: give another DST")
    if dst.exists() and not overwrite and (to_gguf or not dst.is_dir() or any(dst.iterdir())):
        raise RequestError(f"{dst} is there already: give another DST, or --overwrite")
    gone: list[str] = []
    with working("converting", quiet=json):
        checkpoint = open_checkpoint(found, ignore_key)
        own = next((name for name, dtype in dtypes.items() if dtype == checkpoint.dtype), "F32")
        quantized = any(not checkpoint.reader.mapped(name) for name in checkpoint.reader)
        whole = torch.float32 if quantized else checkpoint.dtype  # a folder's tensors are all of one kind
        mixed = None if found.suffix != ".gguf" else whole
        kind = None if to_gguf else dtypes.get(to, mixed)
        tokenizer, shard = tokenizer_of(found, checkpoint.metadata), round(shard_gb * 1e9)
        if to_gguf:
            in_gguf(family_of(checkpoint.config))  # or it says that there is no such form
        if isinstance(checkpoint.config, TextEncoderConfig):
            gone = _convert_encoder(
                checkpoint, dst, tokenizer, kind, shard, (own if to == "auto" else to) if to_gguf else None
            )
        elif reads_source(checkpoint.config):
            model, special = load_pair_model(checkpoint, dtype=kind), special_of(found, checkpoint.metadata)
            if not to_gguf:
                save_translator(model, tokenizer, special, dst, shard=shard)
            elif tokenizer is None:
                raise RequestError(f"{found} has no tokenizer, and a translator's GGUF file holds one")
            else:
                Translator(model, tokenizer, source=str(found), special=special).save_gguf(
                    dst,
                    own if to == "auto" else to,  # pyright: ignore[reportArgumentType]
                )
        else:
            lm = LanguageModel(
                load_model(checkpoint, dtype=kind), tokenizer, end_ids=ends_of(found, checkpoint.metadata)
            )
            if to_gguf:
                lm.save_gguf(dst, own if to == "auto" else to)  # pyright: ignore[reportArgumentType]
            else:
                lm.save(dst, shard=shard)
    files = [path for path in ([dst] if to_gguf else sorted(dst.rglob("*"))) if path.is_file()]
    sizes = {str(path): path.stat().st_size for path in files}
    if json:
        print_json({"source": str(found), "files": sizes, "left_out": gone})
        return
    if gone:
        say(f"left out, since GGUF has no place for it: {', '.join(gone)}")
    for name, size in sizes.items():
        say(f"{name}: {size:,} bytes")


def _convert_encoder(
    checkpoint: Checkpoint,
    dst: Path,
    tokenizer: Tokenizer | None,
    dtype: torch.dtype | None,
    shard: int,
    gguf: str | None,
) -> list[str]:
    """An encoder, its tokenizer, and how a text becomes one vector. Returns what a GGUF file has no place for."""
    from glassformer.formats import load_text_encoder, save_model
    from glassformer.formats.gguf.pooling import sentence_from_gguf
    from glassformer.formats.gguf.save import left_out, save_gguf
    from glassformer.formats.sentence_transformers import MODULES, read_sentence, write_sentence
    from glassformer.models.embedder import Embedder
    from glassformer.nn.pooling import Sentence

    model, source = load_text_encoder(checkpoint, dtype=dtype), str(checkpoint.path)
    sentence: Sentence | None = None
    if checkpoint.metadata:
        sentence = sentence_from_gguf(checkpoint.metadata, source)
    elif (checkpoint.path / MODULES).exists():
        sentence = read_sentence(checkpoint.path, model.config.d_model).to(dtype)
    if gguf is not None:
        if tokenizer is None:
            save_gguf(model, dst, gguf)  # pyright: ignore[reportArgumentType]
        else:
            Embedder(model, tokenizer, sentence, source=source).save_gguf(dst, gguf)  # pyright: ignore[reportArgumentType]
        return left_out(model)
    save_model(model, dst, shard=shard)
    if tokenizer is not None:
        tokenizer.save(dst)
    if sentence is not None:
        write_sentence(sentence, dst, model.config.d_model)
    return []
