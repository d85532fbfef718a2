"""Running of exported graphs from Python, behind transformers' `generate`."""
