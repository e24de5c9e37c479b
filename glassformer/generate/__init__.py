"""From logits to text: choosing tokens, stopping, and the loop between."""
