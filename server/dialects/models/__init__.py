"""The served models: `/v1/models` in OpenAI's form, with additional details."""
