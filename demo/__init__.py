"""The demonstration: the story of a few adapters on a real model, told with the real command (`make demo`)."""
