"""Text to token ids and back: tokenizer training, loading, encoding and decoding. Imports no torch."""
