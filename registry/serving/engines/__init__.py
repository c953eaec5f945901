"""Clients for engines: load and unload adapters, list what is loaded."""
