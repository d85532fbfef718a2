"""YOLO datasets: their layout on disk, and the lines of their label files."""
