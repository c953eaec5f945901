"""The process that holds a base model, its children that try adapters, and the client of it in the worker."""
