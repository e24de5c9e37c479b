"""`glassformer verify`: compare a model's activations with those of `transformers`."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from glassformer.cli.common import IgnoreKeys, Json, out, print_json, say, working
from glassformer.counted import counted
from glassformer.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from glassformer.formats import Checkpoint


def verify(
    model: str,
    *,
    text: str = "",
    tokens: int = 64,
    tolerance: float = 1e-4,
    offline: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    ignore_key: IgnoreKeys = (),
) -> None:
    """Run a model in Glassformer and in `transformers`, in float32, and compare the logits and every layer's outputs.

    Both sides of an encoder-decoder are compared. If they differ, the first difference is reported, and the exit status
    is 1. A file is first converted to a temporary folder, which `transformers` can open.

    Parameters
    ----------
    model
        A model folder or file, a run folder, `stories`, `smollm2`, or a name on the hub.
    text
        The input text, the source for an encoder-decoder; random tokens by default.
    tokens
        The number of random tokens.
    tolerance
        The largest allowed difference, relative to the largest value at each point.
    offline
        Do not use the network.
    """
    import torch
    from torch import Tensor

    from glassformer.config import EncoderConfig, ModelConfig, RecurrentConfig, TextEncoderConfig
    from glassformer.formats import find_model, load_model, open_checkpoint, save_model
    from glassformer.formats.original import find_original
    from glassformer.inspect.capture.compare import compare
    from glassformer.nn.recurrent import RecurrentEncoderDecoder

    try:
        import transformers
    except ImportError:
        raise RequestError("verify needs transformers, which is not installed: pip install transformers") from None
    if tokens < 1 or not tolerance > 0:
        raise RequestError(f"tokens must be at least 1 and tolerance above 0, got {tokens} and {tolerance}")
    found = find_model(model, offline=offline)
    with working("comparing", quiet=json), tempfile.TemporaryDirectory() as converted:
        checkpoint = open_checkpoint(found, ignore_key)
        config, seq2seq = checkpoint.config, checkpoint.kind == "encoder-decoder"
        if isinstance(config, RecurrentConfig) or checkpoint.family.rules is None:
            raise RequestError(
                f"{found} belongs to Glassformer's own family {checkpoint.family.name}, which transformers cannot open"
            )
        ours = load_model(checkpoint, dtype=torch.float32)
        assert not isinstance(ours, RecurrentEncoderDecoder)
        folder = checkpoint.model_path
        if found.is_file() or find_original(found) is not None:
            save_model(ours, converted)
            folder = converted
        generator = torch.Generator().manual_seed(0)

        def random_ids(side: ModelConfig | EncoderConfig) -> Tensor:
            ids = torch.randint(side.vocab_size, (1, min(tokens, side.context_length)), generator=generator)
            padding = side.position_offset - 1 if isinstance(side, TextEncoderConfig) else -1
            return ids.masked_fill(ids == padding, 0)  # transformers assigns no position to padding tokens

        side = config if isinstance(config, EncoderConfig) else config.encoder or config
        ids = torch.tensor([_encode(checkpoint, text, side.vocab_size)]) if text else random_ids(side)
        if ids.shape[1] > side.context_length:
            raise RequestError(f"the text has {ids.shape[1]} tokens, but the context holds {side.context_length}")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        auto = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
        if isinstance(config, TextEncoderConfig):
            auto = transformers.AutoModel if config.head is None else transformers.AutoModelForMaskedLM
        theirs = auto.from_pretrained(folder, dtype=torch.float32).eval()
        points = compare(ours, theirs, random_ids(config), ids) if seq2seq else compare(ours, theirs, ids)
    different = next((point for point in points if not point.off <= tolerance), None)
    reference = f"{type(theirs).__name__} of transformers {transformers.__version__}"
    if json:
        print_json(
            {
                "model": str(found),
                "reference": reference,
                "tokens": ids.shape[1],
                "tolerance": tolerance,
                "logits": points[-1].off,
                "first_difference": different,
                "points": points,
            }
        )
    else:
        length = counted(ids.shape[1], "token")
        say(f"{reference}, {length}, float32; differences relative to the largest value at each point:")
        for point in points:
            if point.point.endswith("resid_post") or "blocks." not in point.point or point is different:
                out.print(f"{point.off:9.1e}  {point.point}", markup=False)
    if different is not None:
        raise CheckpointError(f"{found} and {reference} differ at {different.point}, by {different.off:.1e}")
    if not json:
        largest = max(point.off for point in points)
        out.print(f"equal: {len(points)} points, largest difference {largest:.1e}")


def _encode(checkpoint: Checkpoint, text: str, vocab_size: int) -> list[int]:
    """Return the token ids of a text."""
    from glassformer.generate.request import check_ids

    tokenizer = checkpoint.tokenizer()
    if tokenizer is None:
        raise RequestError(f"{checkpoint.path} has no tokenizer: leave out --text", param="text")
    ids = tokenizer.encode(text)
    check_ids("text", ids, vocab_size)
    return ids
