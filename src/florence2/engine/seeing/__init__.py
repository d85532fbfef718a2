"""How pictures and prompts become what the decoder looks at."""
