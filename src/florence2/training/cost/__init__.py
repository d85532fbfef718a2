"""What a step costs in memory and time, and what makes it cheaper.

Knows the model's modules and devices; not what is learnt, nor what is kept.
"""
