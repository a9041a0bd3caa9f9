"""Tool calls: the form of each model family, parsed, written and enforced by grammar from one table."""
