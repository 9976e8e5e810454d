"""What every endpoint needs of HTTP: bodies, errors, streams, shutdown."""
