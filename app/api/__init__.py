"""The HTTP endpoints, a file each."""
