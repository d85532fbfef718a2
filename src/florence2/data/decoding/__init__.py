"""Decoding of images in processes of its own, so that a decoder that crashes, hangs or eats memory fails one image."""
