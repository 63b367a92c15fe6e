"""HTTP in front of the generation service: OpenAI routes, adapter routes, errors."""
