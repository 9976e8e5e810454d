"""Clients of the HTTP API, files of lines that they score, and evaluations through them."""
