"""Signed links to this server, and its threads that handle them."""
