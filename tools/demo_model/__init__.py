"""Pre-training, fine-tuning and scoring of the bundled model."""
