"""`florence2 doctor`: what this machine offers, and whether a model or dataset is sound."""
