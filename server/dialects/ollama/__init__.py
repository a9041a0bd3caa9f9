"""The Ollama API under `/api`, text only."""
