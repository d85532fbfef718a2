"""Object stores and other remote file systems, by `fsspec`: opening, listing and writing files at an address."""
