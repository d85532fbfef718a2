"""A million files in little memory: compact names, samples that are made when they are read, and sets of digests."""
