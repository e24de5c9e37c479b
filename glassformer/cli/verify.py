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

    from glassformer.inspect.compare import compare
    from glassformer.lm import load
    from glassformer.weights.find import find
    from glassformer.weights.original import original_of

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
        lm = load(found, device="cpu", dtype="float32", ignore_keys=ignore_key)
        folder = found
        if found.is_file() or original_of(found) is not None:
            lm.save(written)
            folder = written
        generator = torch.Generator().manual_seed(0)
        random = torch.randint(lm.config.vocab_size, (min(tokens, lm.config.context_length),), generator=generator)
        ids = torch.tensor([lm.encode(text)]) if text else random[None]
        if ids.shape[1] > lm.config.context_length:
            raise RequestError(f"the text has {ids.shape[1]} tokens, and the context holds {lm.config.context_length}")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        places = compare(lm.model, theirs, ids)
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
