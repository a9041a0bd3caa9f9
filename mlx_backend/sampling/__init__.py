"""From logits to tokens, for a batch of rows that each have their own parameters."""
