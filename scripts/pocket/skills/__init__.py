"""The skills of the corpus, one file each. Each has `make(draw) -> Item` and knows no other way to be asked."""
