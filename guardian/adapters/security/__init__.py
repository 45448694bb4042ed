"""Passwords, tokens, API keys and the secret behind the tokens."""
