"""Chat requests: messages become a task and images, predictions become text or JSON."""
