"""Every error that Glassformer raises for something a person can put right."""


class GlassformerError(Exception):
    """The base of them all: what is wrong, which value, what is allowed."""


class ConfigError(GlassformerError):
    """A model configuration that no known model uses, or a key that nobody reads."""


class CheckpointError(GlassformerError):
    """A model or run folder that is cut short, does not fit, or could not be written."""


class TokenizerError(GlassformerError):
    """A text that cannot be encoded, ids that cannot be decoded, or a tokenizer file that cannot be read."""


class DataError(GlassformerError):
    """Training or evaluation text that cannot be used."""


class RequestError(GlassformerError):
    """An option of a request that is out of range or contradicts another. `param` names it."""

    def __init__(self, message: str, *, param: str | None = None):
        super().__init__(message)
        self.param = param


class NotFoundError(RequestError):
    """A request for a model, trace, view or route that does not exist. `code` is for programs."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message, param=param)
        self.code = code


class CapacityError(GlassformerError):
    """More tokens than the context, the cache or the memory holds."""
