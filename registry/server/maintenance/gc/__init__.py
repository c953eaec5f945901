"""Garbage collection: `collect` runs it, `blobs` begins with the rows and `orphans` with the keys of the store."""
