"""Model folders: their content, and building and reading a model from them."""
