"""SentencePiece: model files, normalization, segmentation and tokenizer backends."""
