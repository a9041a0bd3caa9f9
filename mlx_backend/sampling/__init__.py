"""Sampling: from logits to tokens, for a batch of rows with separate parameters."""
