"""The optimizer: its configuration, look-up by name, parameter groups, creation and hints."""
