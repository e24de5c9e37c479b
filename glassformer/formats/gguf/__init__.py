"""Everything about the GGUF file format."""
