"""How GGUF stores the pooling of an encoder: one number, `pooling_type`.

Programs that run GGUF files normalize every vector to length 1, so Glassformer does too. Cosines do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glassformer.config import Pool, PoolingConfig
from glassformer.errors import ConfigError
from glassformer.nn.pooling import SentencePooling

POOLS: dict[int, Pool] = {1: "mean", 2: "cls", 3: "lasttoken"}
NONE = 0  # 4, the scores of a classifier, is not supported


def pooling_from_gguf(metadata: Mapping[str, Any], source: str) -> SentencePooling:
    """Return a file's pooling; by default the mean of all states.

    Raises:
        ConfigError: the type is not supported.
    """
    key = f"{metadata.get('general.architecture')}.pooling_type"
    number = metadata.get(key, NONE)
    if number == NONE:
        return SentencePooling(PoolingConfig()).eval()
    if number not in POOLS:
        known = ", ".join(f"{number} ({pool})" for number, pool in POOLS.items())
        raise ConfigError(f"{source}: {key} = {number!r} is not supported, only {known}, and 0 for none")
    return SentencePooling(PoolingConfig(pools=(POOLS[number],), after=("normalize",))).eval()


def pooling_to_gguf(sentence: SentencePooling, architecture: str) -> dict[str, Any]:
    """Return the metadata of a pooling. It gives the same vectors, or the same cosines if they are compared by cosine.

    Raises:
        ConfigError: lists the settings that the format cannot describe.
    """
    config = sentence.config
    if config == PoolingConfig():
        return {}
    numbers = [number for number, pool in POOLS.items() if config.pools == (pool,)]
    same_cosines = config.after == ("normalize",) or (not config.after and config.similarity == "cosine")
    unsupported = {
        f"the pooling {' + '.join(config.pools)}": not numbers,
        "layers after the pooling": any(layer != "normalize" for layer in config.after),
        f"vectors compared by {config.similarity}": not same_cosines,
        f"the prompt {config.prompt!r} before every text": config.prompt is not None,
        "a prompt that is not pooled": not config.with_prompt,
        f"the first {config.dimensions} numbers of a vector": config.dimensions is not None,
    }
    if problems := [setting for setting, present in unsupported.items() if present]:
        raise ConfigError(f"GGUF cannot describe {', '.join(problems)}")
    return {f"{architecture}.pooling_type": numbers[0]}
