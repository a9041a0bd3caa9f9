"""What a quantized KV cache costs in quality, measured with the pocket model: `python -m scripts.kv_quality`."""
