"""What a past token leaves behind, so that no position is computed twice."""
