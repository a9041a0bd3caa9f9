"""The making of the pocket model: corpus, tokenizer, training, export, evaluation. Not part of the server."""
