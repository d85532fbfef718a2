"""The command line: its commands, the words that a user types, and the function that runs one of them."""
