"""Readers of text detection datasets: ICDAR, PaddleOCR, FUNSD."""
