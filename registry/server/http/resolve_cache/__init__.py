"""The resolve cache: serves `GET /resolve/…` from memory while nothing was committed that could change it."""
