"""The resolve cache: answers `GET /resolve/…` from memory while nothing was committed that could change the answer."""
