"""Convert published weights to a folder that fits: recipes, allocation by bytes, streaming, quality."""
