"""Score documents for a query: `/v1/rerank` in the shape of Jina and Cohere, and vLLM's `/v1/score`."""
