"""An answer taken apart: thoughts, calls and content, by the marks of each family of models."""
