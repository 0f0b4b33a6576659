"""Image-text pairs at scale: an index of shards and lists, ranged reads, and an order without a table."""
