"""A query's sentences and pictures: negations, spellings, phrases, and the one vector that all of them become."""
