"""Dataset formats of other tools, each read as rows of the common JSONL. Imports no torch."""
