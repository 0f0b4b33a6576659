"""The losses: matching, multi-level alignment, identity, image-text matching (ITM), bidirectional mask modelling."""
