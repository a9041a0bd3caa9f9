"""Model folders: what they hold, and how a model is built and read from them."""
