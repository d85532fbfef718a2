"""Dataset inspection before training: a report of issues, and conversion to other formats. Imports no torch."""
