"""Benchmarks against every peer and against the bare loop; `python -m benchmarks` runs them."""
