"""Scores for a model that is learning: the same questions, set again and again. Knows no model."""
