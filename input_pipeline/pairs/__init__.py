"""Image-text pairs at scale: an index of shards and lists, and ranged reads."""
