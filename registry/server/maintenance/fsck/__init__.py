"""Consistency checks: `check` runs the stages, one module each."""
