"""The layouts that torch reads: of transformers, and of Microsoft's code."""
