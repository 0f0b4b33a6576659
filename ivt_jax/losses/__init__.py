"""The losses: matching, multi-level alignment, identity, bidirectional mask modelling."""
