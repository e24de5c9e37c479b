"""Looking inside a model while it runs: what can be seen, and how to compute what is not kept."""
