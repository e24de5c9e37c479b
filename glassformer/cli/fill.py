"""`glassformer fill`: predict the masked tokens of a text."""

from __future__ import annotations

from dataclasses import asdict

from glassformer.cli.common import IgnoreKeys, Json, Machine, open_model, print_json


def fill(
    model: str,
    text: str,
    *,
    top: int = 5,
    json: Json = False,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Predict the masked tokens of a text.

    Parameters
    ----------
    model
        An encoder-only model with a masked-language-modelling head: a model folder, or a name on the hub.
    text
        A text with mask tokens: `[MASK]` for BERT and DistilBERT, `<mask>` for RoBERTa.
    top
        Show this many candidates per masked position.
    """
    from glassformer.models.embedder import Embedder

    embedder = open_model(Embedder, model, machine, ignore_key, quiet=json)
    positions = embedder.fill(text, top=top)
    if json:
        fills = [[asdict(one) for one in candidates] for candidates in positions]
        print_json({"model": embedder.path, "text": text, "masks": fills})
        return
    for i, candidates in enumerate(positions):
        if len(positions) > 1:
            print(f"mask {i + 1}")
        for one in candidates:
            print(f"{100 * one.probability:6.2f}%  {one.text.strip()}")
