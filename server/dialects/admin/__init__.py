"""Administration of the server: list the models in memory, load and unload them."""
