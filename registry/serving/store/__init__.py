"""The local adapter store of a serving node: versions by digest, eviction, which are in use."""
