"""The demonstration: a few adapters on a real model, shown with the real command (`make demo`)."""
