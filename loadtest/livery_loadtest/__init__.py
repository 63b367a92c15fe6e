"""A load client for OpenAI-compatible servers. Imports nothing of the server."""
