"""Products in 8 bits on a CPU: linear layers, the vision tower, and the model around them."""
