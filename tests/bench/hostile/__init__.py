"""Clients that mean harm, with normal ones beside them: `make bench-hostile`."""
