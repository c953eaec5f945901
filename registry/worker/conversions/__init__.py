"""Conversions that need values: each is a program of its own, which knows folders and no registry.

Values are computed in 32 bits at least. A library's converter is checked: its result is counted and measured against
the source, and a loss is a refusal.
"""
