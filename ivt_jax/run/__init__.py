"""A run on disk: its folder, its checkpoints, and how its processes end."""
