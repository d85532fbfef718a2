"""How the bundled model is built: its blank form, the lessons it takes, the scores it reaches.

Only `build.py` needs it; nothing here runs when the model is used.
"""
