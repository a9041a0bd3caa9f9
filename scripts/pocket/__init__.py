"""How the pocket model is made: corpus, tokenizer, training, export, evaluation. Not part of the server."""
