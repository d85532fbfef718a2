"""The decoder, the KV cache, and the search for the next token."""
