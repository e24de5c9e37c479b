"""Record traces of models, and store them."""
