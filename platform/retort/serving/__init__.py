"""Speech over HTTP on Ray Serve: OpenAI's API, streaming, admission by audio seconds."""
