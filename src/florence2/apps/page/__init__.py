"""Pages in a browser: the ask view of `florence2 serve`, and `florence2 review`, which corrects datasets."""
