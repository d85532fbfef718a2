"""The pre-training of the bundled model: initial weights, training data, losses and the four stages."""
