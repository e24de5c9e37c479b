"""GGUF files, which llama.cpp runs: read and write models in them."""
