"""Checkpoint files: finding and reading them, the two layouts of tensor names, and the metadata of a training run."""
