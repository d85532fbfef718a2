"""Faults of files, folders and machines that bulk prediction survives."""
