"""Training: from text to a model, with data, optimizer, loop and checkpoints whose every number can be seen."""
