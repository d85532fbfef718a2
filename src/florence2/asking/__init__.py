"""What is asked of each picture: the words of `--task` and `--input` as questions. Knows no model and no answers."""
