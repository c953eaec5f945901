"""The agent beside an engine: reconcile, verify, report."""
