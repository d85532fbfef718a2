"""How it answers, fast. Knows no paths and no files to write."""
