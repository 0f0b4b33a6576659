"""Where the rows of an index are kept: the contract of a store, Lance, Qdrant, and the language of filters."""
