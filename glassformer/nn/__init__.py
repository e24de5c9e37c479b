"""The model: every idea of the Transformer once, under its usual name."""
