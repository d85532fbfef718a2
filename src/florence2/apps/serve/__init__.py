"""The HTTP server: `florence2 serve` speaks the protocols of OpenAI and Ollama, and one of its own."""
