"""From a distribution to the next token."""
