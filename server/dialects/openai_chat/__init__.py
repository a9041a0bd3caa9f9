"""OpenAI's `/v1/chat/completions`, text only."""
