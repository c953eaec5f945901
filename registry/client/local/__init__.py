"""Files on this machine: adapter and base folders, their hashes, the cache, the destination of a pull."""
