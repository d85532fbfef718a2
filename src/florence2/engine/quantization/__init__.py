"""Products in 8 bits, of integers on a CPU and of floating-point numbers on a GPU: layers and model."""
