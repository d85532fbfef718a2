"""Predictions of a job in shards: a folder with one file for each shard, local or in a store."""
