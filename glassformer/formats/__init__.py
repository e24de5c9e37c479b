"""Checkpoints: Hugging Face folders to models and back, every tensor accounted for."""

from glassformer.formats.load import load_model, load_pair_model, load_text_encoder
from glassformer.formats.save import save_model

__all__ = ["load_model", "load_pair_model", "load_text_encoder", "save_model"]
