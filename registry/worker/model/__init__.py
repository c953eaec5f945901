"""Models on this machine: language and image models, weights, sources, probes."""
