"""Inference: continuous batching with `Engine`, or transformers' `generate`. Opens no paths and writes no files."""
