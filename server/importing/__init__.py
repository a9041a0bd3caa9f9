"""Models of other programs, made into what Pippin serves: GGUF files, Modelfiles, Ollama's and LM Studio's stores."""
