"""What is served: `/v1/models` in OpenAI's form, with what the server knows besides."""
