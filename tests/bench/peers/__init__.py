"""The same model behind generic servers, to compare with: `make bench-peers`."""
