"""`glassformer verify`: a model against `transformers`, place by place."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from glassformer.cli.common import IgnoreKeys, Json, out, print_json, say, working
from glassformer.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from glassformer.formats.checkpoint import Checkpoint


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
    """Run a model here and in `transformers`, in float32, and compare logits and what every layer makes, on both sides
    of a translator.

    Says the first place where the two part, and then ends with status 1. A file is first written as a folder, which
    `transformers` then opens.

    Parameters
    ----------
    model
        A model folder or file, a run folder, `stories`, or a name on the hub.
    text
        What both read, of a translator its source; by default random tokens.
    tokens
        How many random tokens.
    tolerance
        How far numbers may be apart, of the largest of their place.
    offline
        Use no network.
    """
    import torch
    from torch import Tensor

    from glassformer.config import EncoderConfig, ModelConfig, RecurrentConfig, TextEncoderConfig
    from glassformer.formats import load_model, load_pair_model, load_text_encoder, save_model
    from glassformer.formats.checkpoint import open_checkpoint
    from glassformer.formats.find import find
    from glassformer.formats.load import reads_source
    from glassformer.formats.original import original_of
    from glassformer.inspect.capture.compare import compare
    from glassformer.nn.recurrent import RecurrentEncoderDecoder

    try:
        import transformers
    except ImportError:
        raise RequestError(
            "verify compares with transformers, which is not installed: pip install transformers"
        ) from None
    if tokens < 1 or not tolerance > 0:
        raise RequestError(f"tokens must be at least 1 and tolerance above 0, got {tokens} and {tolerance}")
    found = find(model, offline=offline)
    with working("comparing", quiet=json), tempfile.TemporaryDirectory() as written:
        checkpoint = open_checkpoint(found, ignore_key)
        config = checkpoint.config
        if isinstance(config, RecurrentConfig) or checkpoint.family.rules is None:
            raise RequestError(
                f"{found} is of our own kind, {checkpoint.family.name}, which transformers does not open"
            )
        pair, alone = reads_source(config), isinstance(config, TextEncoderConfig)
        load = load_text_encoder if alone else load_pair_model if pair else load_model
        ours = load(checkpoint, dtype=torch.float32)
        assert not isinstance(ours, RecurrentEncoderDecoder)
        folder = found
        if found.is_file() or original_of(found) is not None:
            save_model(ours, written)
            folder = written
        generator = torch.Generator().manual_seed(0)

        def random(side: ModelConfig | EncoderConfig) -> Tensor:
            ids = torch.randint(side.vocab_size, (1, min(tokens, side.context_length)), generator=generator)
            padding = side.position_offset - 1 if isinstance(side, TextEncoderConfig) else -1
            return ids.masked_fill(ids == padding, 0)  # of which the other side counts no positions

        reading = config if isinstance(config, EncoderConfig) else config.encoder or config
        ids = torch.tensor([_encoded(checkpoint, text, reading.vocab_size)]) if text else random(reading)
        if ids.shape[1] > reading.context_length:
            raise RequestError(f"the text has {ids.shape[1]} tokens, and the context holds {reading.context_length}")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        kind = transformers.AutoModelForSeq2SeqLM if pair else transformers.AutoModelForCausalLM
        if isinstance(config, TextEncoderConfig):
            kind = transformers.AutoModel if config.head is None else transformers.AutoModelForMaskedLM
        theirs = kind.from_pretrained(folder, dtype=torch.float32).eval()
        places = compare(ours, theirs, random(config), ids) if pair else compare(ours, theirs, ids)
    apart = next((place for place in places if not place.off <= tolerance), None)
    facts = {
        "model": str(found),
        "reference": f"{type(theirs).__name__} of transformers {transformers.__version__}",
        "tokens": ids.shape[1],
        "tolerance": tolerance,
        "logits": places[-1].off,
        "first_difference": apart,
        "places": places,
    }
    if json:
        print_json(facts)
    else:
        say(f"{facts['reference']}, {ids.shape[1]} tokens, float32; off, of the largest number of each place:")
        for place in places:
            if place.point.endswith("resid_post") or "blocks." not in place.point or place is apart:
                out.print(f"{place.off:9.1e}  {place.point}", markup=False)
    if apart is not None:
        raise CheckpointError(f"{found} and {facts['reference']} part at {apart.point}, by {apart.off:.1e}")
    if not json:
        out.print(f"the same: {len(places)} places, none further apart than {max(p.off for p in places):.1e}")


def _encoded(checkpoint: Checkpoint, text: str, vocab_size: int) -> list[int]:
    """A text as the model reads it."""
    from glassformer.formats.find import tokenizer_of
    from glassformer.generate.request import check_ids

    tokenizer = tokenizer_of(checkpoint.path, checkpoint.metadata)
    if tokenizer is None:
        raise RequestError(f"{checkpoint.path} has no tokenizer: leave --text out", param="text")
    ids = tokenizer.encode(text)
    check_ids("text", ids, vocab_size)
    return ids
