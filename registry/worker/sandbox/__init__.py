"""Processes that load hostile input: hosts of a model, children, confinement."""
