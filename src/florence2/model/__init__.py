"""What Florence-2 is and speaks: its tasks, tokens, weights and pixels. Nobody else names a token or a tensor."""
