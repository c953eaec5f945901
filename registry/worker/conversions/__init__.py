"""Conversions that need values, in 32 bits at least: each is a program of its own, which knows folders only."""
