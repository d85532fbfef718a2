"""The model: its tasks, tokens, answers, preprocessing, weights and adapters."""
