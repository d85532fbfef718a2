"""Task pipelines: the tasks to run on each image, cascades of tasks, several classes, and regions in pixels."""
