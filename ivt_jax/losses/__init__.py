"""The objective: CMPM, multi-level alignment, bidirectional mask modelling."""
