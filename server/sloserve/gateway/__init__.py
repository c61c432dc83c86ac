"""The HTTP server that routes: stateless, several side by side."""
