"""Perplexity of checkpoints on texts."""
