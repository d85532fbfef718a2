"""What all tests share. Being here, it also puts the repository's root on the path, for `from tests.tiny import ...`."""
