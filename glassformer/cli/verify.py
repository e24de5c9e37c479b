"""`glassformer verify`: a model against `transformers`, place by place."""

from __future__ import annotations

import tempfile
from typing import Annotated

from cyclopts import Parameter

from glassformer.cli.common import IgnoreKeys, Json, out, print_json, say, working
from glassformer.errors import CheckpointError, RequestError


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
    """Run a model here and in `transformers`, in float32, and compare logits and what every layer makes.

    Says the first place where the two part, and then ends with status 1. A file is first written as a folder, which
    `transformers` then opens.

    Parameters
    ----------
    model
        A model folder or file, a run folder, `stories`, or a name on the hub.
    text
        What both read; by default random tokens.
    tokens
        How many random tokens.
    tolerance
        How far numbers may be apart, of the largest of their place.
    offline
        Use no network.
    """
    import torch

    from glassformer.encoder_config import TextEncoderConfig
    from glassformer.inspect.compare import compare
    from glassformer.lm import load
    from glassformer.weights import load_text_encoder, save_model
    from glassformer.weights.checkpoint import open_checkpoint
    from glassformer.weights.find import find, tokenizer_of

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
        checkpoint, folder = open_checkpoint(found, ignore_key), found
        if isinstance(checkpoint.config, TextEncoderConfig):
            ours = load_text_encoder(checkpoint, dtype=torch.float32)
            kind = transformers.AutoModel if ours.head is None else transformers.AutoModelForMaskedLM
            words = tokenizer_of(found) if text else None
            if text and words is None:
                raise RequestError("this model has no tokenizer: leave out the text")
            given = words.encode(text) if words is not None else []
        else:
            lm, kind = (
                load(found, device="cpu", dtype="float32", ignore_keys=ignore_key),
                transformers.AutoModelForCausalLM,
            )
            ours, given = lm.model, lm.encode(text) if text else []
        if found.is_file():
            save_model(ours, written)
            folder = written
        config = ours.config
        generator = torch.Generator().manual_seed(0)
        random = torch.randint(config.vocab_size, (min(tokens, config.context_length),), generator=generator)
        ids = torch.tensor([given or random.tolist()])
        if isinstance(config, TextEncoderConfig) and config.position_offset:
            ids[ids == config.position_offset - 1] = 0  # padding, of which they count no positions
        if ids.shape[1] > config.context_length:
            raise RequestError(f"the text has {ids.shape[1]} tokens, and the context holds {config.context_length}")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        theirs = kind.from_pretrained(folder, dtype=torch.float32).eval()
        places = compare(ours, theirs, ids)
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
            if place.point.endswith("resid_post") or not place.point.startswith("blocks") or place is apart:
                out.print(f"{place.off:9.1e}  {place.point}", markup=False)
    if apart is not None:
        raise CheckpointError(f"{found} and {facts['reference']} part at {apart.point}, by {apart.off:.1e}")
    if not json:
        out.print(f"the same: {len(places)} places, none further apart than {max(p.off for p in places):.1e}")
