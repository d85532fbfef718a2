"""Fine-tuning of Florence-2: datasets, model preparation, the trainer, its callbacks, checkpoints and performance."""
