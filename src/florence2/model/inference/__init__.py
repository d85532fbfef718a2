"""The model of prediction: the modules that the engine runs, with the names and results of transformers'."""
