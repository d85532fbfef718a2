"""Correction of a dataset in place: rows of a JSONL and caption files, changed by people, one atomic write a change."""
