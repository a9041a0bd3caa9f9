"""The skills of the corpus, one file each, each with the one entry point `make(draw) -> Item`."""
