"""The client: what a trainer, a serving node and a worker need to talk to a registry. Base install only."""
