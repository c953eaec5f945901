"""Desired state for serving nodes, and what they report."""
