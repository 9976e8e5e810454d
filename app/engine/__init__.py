"""Sequences to flat batches to results: scheduling, planning, running, settling."""
