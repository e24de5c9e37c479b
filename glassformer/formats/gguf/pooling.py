"""What a GGUF file says of how an encoder's states become one vector: a number for the pooling, and no more.

The programs that run such files make vectors of length 1, and so are they here: it changes no cosine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glassformer.config import Pool, PoolingConfig
from glassformer.errors import ConfigError
from glassformer.nn.pooling import Sentence

POOLS: dict[int, Pool] = {1: "mean", 2: "cls", 3: "lasttoken"}
NONE = 0  # 4 are the scores of a classifier


def sentence_from_gguf(metadata: Mapping[str, Any], source: str) -> Sentence:
    """The mean of all states where the file says nothing. ConfigError for a number that is none of ours."""
    key = f"{metadata.get('general.architecture')}.pooling_type"
    number = metadata.get(key, NONE)
    if number == NONE:
        return Sentence(PoolingConfig()).eval()
    if number not in POOLS:
        known = ", ".join(f"{number} ({pool})" for number, pool in POOLS.items())
        raise ConfigError(f"{source}: {key} = {number!r} is not supported, only {known}, and 0 for none")
    return Sentence(PoolingConfig(pools=(POOLS[number],), after=("normalize",))).eval()


def sentence_to_gguf(sentence: Sentence, architecture: str) -> dict[str, Any]:
    """The metadata from which the same vectors come, but for their length where a cosine compares them.

    ConfigError for what the format has no words for.
    """
    config = sentence.config
    if config == PoolingConfig():
        return {}
    numbers = [number for number, pool in POOLS.items() if config.pools == (pool,)]
    whole = config.after == ("normalize",) or (not config.after and config.similarity == "cosine")
    wrong = {
        f"the pooling {' + '.join(config.pools)}": not numbers,
        "layers behind the pooling": any(one != "normalize" for one in config.after),
        f"vectors compared by {config.similarity}": not whole,
        f"the prompt {config.prompt!r} before every text": config.prompt is not None,
        "a prompt that is not pooled": not config.with_prompt,
        f"the first {config.dimensions} numbers of a vector": config.dimensions is not None,
    }
    if found := [what for what, said in wrong.items() if said]:
        raise ConfigError(f"GGUF has no words for {', '.join(found)}")
    return {f"{architecture}.pooling_type": numbers[0]}
