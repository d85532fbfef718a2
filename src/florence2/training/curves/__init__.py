"""Curves of a training run: its metrics on disk, as a picture, and as a page that refreshes while it runs."""
