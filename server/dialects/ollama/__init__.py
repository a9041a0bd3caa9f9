"""The Ollama API below `/api`, text only."""
