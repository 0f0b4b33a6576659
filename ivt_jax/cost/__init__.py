"""Memory and FLOPs of a training step, by formula and by XLA, before it runs."""
