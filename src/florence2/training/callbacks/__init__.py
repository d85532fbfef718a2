"""Trainer callbacks: progress, metrics, sample answers, trackers, and what stops a run."""
