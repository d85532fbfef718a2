"""Between the steps: what is shown, what is kept, what ends a training.

Knows files and the trainer's callbacks, and neither model nor settings.
"""
