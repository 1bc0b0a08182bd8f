"""Answers over HTTP: OpenAI's form, the original api.py's form, and a page for people."""
