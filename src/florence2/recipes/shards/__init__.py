"""Prediction of shards: images of any number, in a store or on this machine, and one output for each shard."""
