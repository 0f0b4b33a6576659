"""Comparisons with other implementations; nothing of the project needs them."""
