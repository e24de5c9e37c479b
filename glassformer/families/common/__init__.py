"""Helpers that model families share."""
