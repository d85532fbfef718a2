"""The vision tower and the text encoder: images and prompts to encoder states."""
