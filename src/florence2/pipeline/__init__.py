"""The task pipeline: which tasks are asked about each image, in which order. It knows no model and no answers."""
