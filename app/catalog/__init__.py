"""Loads, replaces and closes the models that are served."""
