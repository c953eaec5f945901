"""Searching: filters of adapters, and the index of their words."""
