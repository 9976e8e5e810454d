"""Evaluations of a language model through the running HTTP service."""
