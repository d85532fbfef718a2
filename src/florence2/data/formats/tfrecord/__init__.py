"""TFRecord files of TensorFlow's object detection API."""
