"""Models on disk: open a checkpoint, load its weights, save a model.

checkpoint = open_checkpoint(find_model("owner/name"))     # reads the configuration and the tensor names
checkpoint.kind                                            # "decoder", "encoder-decoder", "recurrent" or "encoder"
model, tokenizer = load_model(checkpoint), checkpoint.tokenizer()
"""

from glassformer.formats.checkpoint import Checkpoint, ModelKind, open_checkpoint
from glassformer.formats.find import find_model
from glassformer.formats.load import load_decoder, load_model, load_seq2seq, load_text_encoder
from glassformer.formats.save import save_model

__all__ = [
    "Checkpoint",
    "ModelKind",
    "find_model",
    "load_decoder",
    "load_model",
    "load_seq2seq",
    "load_text_encoder",
    "open_checkpoint",
    "save_model",
]
