"""Aliases and what decides about them: gates, yank and quarantine, attestations."""
