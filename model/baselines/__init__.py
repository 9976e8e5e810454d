"""Language models that a user would pick instead, to compare with."""
