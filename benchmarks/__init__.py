"""Benchmarks: ``python -m benchmarks`` runs everything and writes the results beside this file."""
