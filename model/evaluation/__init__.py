"""Perplexity of a checkpoint on texts."""
