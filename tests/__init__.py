"""The tests mirror the tree of the package; `tests.tiny` makes the model they share."""
