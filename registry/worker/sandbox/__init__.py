"""How programs of the worker are started and confined: entry, environment, limits, namespaces."""
