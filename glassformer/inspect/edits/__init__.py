"""Edits: changes to the values that flow through a model."""
