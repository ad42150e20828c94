"""Serving: the OpenAI-compatible server, and a chat in the terminal."""
