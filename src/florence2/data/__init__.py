"""Data sources: image folders, tables, annotation formats and datasets, read as samples. Imports no torch."""
