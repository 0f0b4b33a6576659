"""Benchmarks: how fast the parts are, and how well phrases point at pixels."""
