"""Checkpoints of a training run: how they are written, found and resumed."""
