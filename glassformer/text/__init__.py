"""Text and tokens: tokenizers that are trained, opened, explained and decoded here.  Nothing in it imports torch."""
