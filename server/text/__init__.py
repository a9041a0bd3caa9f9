"""Between token ids and meaning: tokenizers, templates, stop strings. Tested without a model."""
