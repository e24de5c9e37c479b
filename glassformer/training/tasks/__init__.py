"""What is trained: a language model or a sequence-to-sequence model."""
