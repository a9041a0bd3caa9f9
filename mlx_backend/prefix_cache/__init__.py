"""The prefix cache: KV caches of prompts and answers, found again by content, in memory and on an SSD."""
