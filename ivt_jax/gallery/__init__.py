"""Embeds galleries of any size: one shard of vectors for each shard of crops, independently, on any machine."""
