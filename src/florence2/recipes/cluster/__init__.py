"""Prediction on a cluster by Ray Data: shards are read tasks, engines are a pool of actors, this process writes."""
