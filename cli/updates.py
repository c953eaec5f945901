"""What `adapter diff --values` needs of an adapter's numbers; a room of its own, because it imports torch."""

from __future__ import annotations

from registry.worker.model.updates import cosines

__all__ = ["cosines"]
