"""Import models of other programs: GGUF files, Modelfiles, and the stores of Ollama and LM Studio."""
