"""The training dataset: samples, their augmentation, their order and their batches."""
