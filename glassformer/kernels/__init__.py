"""Fast implementations of operations that `nn` defines, and the choice between them."""
