"""Outputs of prediction and evaluation: journal, caption files, annotated images, dataset exports, HTML pages."""
