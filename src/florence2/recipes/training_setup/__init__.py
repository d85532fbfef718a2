"""What a training run resolves before it starts: its spec, and its evaluation."""
