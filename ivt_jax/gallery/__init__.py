"""A gallery of any size as vectors: shards of crops in, shards of vectors out, each by itself, on any machine."""
