"""Samples that come by in turn instead of being listed first: what is too large to list, or too far away.

Knows no torch, and not who takes the samples.
"""
