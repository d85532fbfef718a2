"""Programs on the public face of the package, one folder each; nothing imports them but the command line."""
