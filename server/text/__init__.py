"""Translation between token ids and text: tokenizers, chat templates, stop strings. Tested without a model."""
