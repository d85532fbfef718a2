"""Engines in other processes and on other devices, behind one interface."""
