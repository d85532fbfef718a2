"""Metrics of predictions against references: text, detection, masks, grounding, with confidence intervals."""
