"""What all tests share; being here, it puts the repository's root on the path, for `from tests.tiny import ...`."""
