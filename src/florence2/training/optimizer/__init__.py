"""Which weights move how fast, and by which optimizer.

Knows weights by name and kind only; the settings come as plain values.
"""
