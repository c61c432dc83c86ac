"""What both HTTP servers share: OpenAI bodies and errors, SSE, metrics, files, the server."""
