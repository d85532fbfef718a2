"""Other people's formats, each read as rows of the one JSONL. Knows no torch, and not what is done with the samples."""
