"""The server half of a push: plan, commit, inspect, rows, and what follows in the background."""
