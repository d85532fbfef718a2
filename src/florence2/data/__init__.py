"""Where samples come from: pictures, folders, lists, datasets. Knows no torch and no model weights."""
