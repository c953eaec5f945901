"""The client: what a trainer, a serving box and a worker need to talk to a registry. Base install only."""
