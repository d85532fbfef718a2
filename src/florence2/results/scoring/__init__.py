"""How good answers are: predictions beside references, and what the field calls it when they agree.

Knows no model: it compares what was said with what should have been said. `score.py` is the entrance.
"""
