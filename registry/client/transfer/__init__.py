"""Pushes and pulls: one adapter or many, and the bytes of each file."""
