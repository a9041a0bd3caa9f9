"""OpenAI's Responses API: requests and answers as items, and answers stored for a while."""
