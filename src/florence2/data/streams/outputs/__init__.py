"""The output of a prediction as a dataset: its tables, and the images that they name in tars and in stores."""
