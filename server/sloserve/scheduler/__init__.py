"""Owns the state of every request and the accounting of KV blocks."""
