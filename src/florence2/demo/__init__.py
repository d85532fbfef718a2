"""The bundled small Florence-2, the images it was trained on, and `florence2 demo`."""
