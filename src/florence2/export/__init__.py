"""Exports: a model in the layout of another program, compared with the original before it is released."""
