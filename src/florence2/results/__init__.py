"""What is kept of the answers, and how good it is. Knows no model."""
