"""The errors that Glassformer raises for invalid input."""

from collections.abc import Sequence

MAX_LISTED = 20  # items named in one message


def shortened(items: Sequence[str], separator: str = ", ", limit: int = MAX_LISTED) -> str:
    """Return the first items of a list for a message, and the number of the others: "a, b, and 3 more"."""
    rest = len(items) - limit
    return separator.join([*items[:limit], *([f"and {rest:,} more"] if rest > 0 else [])])


class GlassformerError(Exception):
    """Base class of Glassformer's errors. A message names the problem, the value given and the allowed values."""


class ConfigError(GlassformerError):
    """An invalid or unsupported configuration, or an unknown key."""


class CheckpointError(GlassformerError):
    """A model or run folder that is truncated, inconsistent, or cannot be written."""


class TokenizerError(GlassformerError):
    """A text that cannot be encoded, ids that cannot be decoded, or an invalid tokenizer file."""


class DataError(GlassformerError):
    """Training or evaluation text that cannot be used."""


class RequestError(GlassformerError):
    """A request option that is out of range or contradicts another. `param` is its name."""

    def __init__(self, message: str, *, param: str | None = None):
        super().__init__(message)
        self.param = param


class NotFoundError(RequestError):
    """A request for a model, trace, view or route that does not exist. `code` is its machine-readable kind."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message, param=param)
        self.code = code


class CapacityError(GlassformerError):
    """More tokens than the context, the cache or memory can hold."""
