"""Checkpoint files: how they are found and read, the two layouts of their names, and the metadata of a training run."""
