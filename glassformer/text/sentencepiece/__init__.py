"""SentencePiece models: their file format, normalization, segmentation and tokenizers."""
