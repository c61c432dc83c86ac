"""The HTTP server of one replica."""
