"""From text to corpora."""
