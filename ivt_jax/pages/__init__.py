"""The HTML pages that a run and a search write."""
