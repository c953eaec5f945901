"""The server half of a push: `plan` → `commit` → `inspect` → `rows`, and `background` work after the response."""
