"""A dataset looked at before it is learnt from: checked, shown, rewritten. Knows no torch and no model weights."""
