"""A language model as the API uses it: text in, scores and text out."""
