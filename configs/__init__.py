"""Configurations: `default` names every key once, the others are deltas."""
