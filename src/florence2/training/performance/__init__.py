"""Memory and speed of a training step: estimates, auto batch size, fused layers, CUDA graphs, feature cache."""
