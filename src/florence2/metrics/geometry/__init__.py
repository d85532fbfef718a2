"""Metrics of boxes, quads and polygons: matching by IoU, COCO average precision, detection and mask scores."""
