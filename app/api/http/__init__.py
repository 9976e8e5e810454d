"""HTTP for all endpoints: bodies, errors, streams, shutdown."""
