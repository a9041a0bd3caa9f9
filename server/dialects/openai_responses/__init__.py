"""OpenAI's Responses: a request of items, an answer of items, and answers that are kept for a while."""
