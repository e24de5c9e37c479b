"""The layers and models of the package, as PyTorch modules."""
