"""Tars as webdataset has them: their records, sources of samples, and writing."""
