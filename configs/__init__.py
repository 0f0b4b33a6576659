"""Configs: `default` has every key, the others change some of them."""
