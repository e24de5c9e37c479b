"""Tap points, and taps that capture values during a forward pass."""
