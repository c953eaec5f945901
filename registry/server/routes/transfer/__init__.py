"""Routes of push and pull."""
