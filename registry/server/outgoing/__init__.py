"""Requests that this server sends to others."""
