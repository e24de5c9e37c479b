"""Traces: the captured values of one forward pass, and what is recomputed from them."""
