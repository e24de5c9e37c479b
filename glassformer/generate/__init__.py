"""From logits to tokens: sampling, stop strings, the decode loop and beam search."""
