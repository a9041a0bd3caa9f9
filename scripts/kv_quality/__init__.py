"""The quality cost of a quantized KV cache, measured with the pocket model: `python -m scripts.kv_quality`."""
