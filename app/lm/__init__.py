"""A language model: text in, scores and text out. Serves the API and the command line."""
