"""What is learnt: samples found, varied from epoch to epoch, and put side by side in batches.

Knows samples, and the model only as words and pixels; not how a step is taken.
"""
