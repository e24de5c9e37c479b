"""Ways to present a trace: the router, reports and notebooks."""
