"""How Florence-2 learns: what a step sees, how it is taken, watched and kept.

Knows samples and the model, not the command line and not which settings there are beyond the groups it is handed.
"""
