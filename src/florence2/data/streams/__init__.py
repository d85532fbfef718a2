"""Streaming of datasets that are too large to list, or remote: shard readers and a shuffled stream."""
