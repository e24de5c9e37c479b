"""Training tasks: language modelling and sequence-to-sequence."""
