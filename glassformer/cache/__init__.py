"""Key/value caches of past tokens."""
