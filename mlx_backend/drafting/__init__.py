"""Drafts of speculative decoding: tokens that may follow, and how many of them pay. No MLX, no threads, no clock."""
