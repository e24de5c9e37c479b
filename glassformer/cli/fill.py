"""`glassformer fill`: guess the hidden places of a text."""

from __future__ import annotations

from dataclasses import asdict

from glassformer.cli.common import IgnoreKeys, Json, Machine, open_embedder, print_json


def fill(
    model: str,
    text: str,
    *,
    top: int = 5,
    json: Json = False,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Guess which tokens stand in the hidden places of a text.

    Parameters
    ----------
    model
        An encoder's model folder that was saved with its head of masked language modelling, or a name on the hub.
    text
        A text with the mask token's name in it: `[MASK]` of BERT and DistilBERT, `<mask>` of RoBERTa.
    top
        Show this many guesses for each place.
    """
    embedder = open_embedder(model, machine, ignore_key, quiet=json)
    places = embedder.fill(text, top=top)
    if json:
        guesses = [[asdict(guess) for guess in place] for place in places]
        print_json({"model": embedder.source, "text": text, "places": guesses})
        return
    for i, place in enumerate(places):
        if len(places) > 1:
            print(f"place {i + 1}")
        for guess in place:
            print(f"{100 * guess.probability:6.2f}%  {guess.text.strip()}")
