"""The four graphs of Florence-2 as ONNX files, in the layout that transformers.js loads."""
