"""What `adapter diff --values` needs of an adapter's numbers; a room of its own, because it imports torch.

Example
    >>> cosines(Path("a"), Path("b"))["model.layers.0.self_attn.q_proj"]
    0.97
"""

from __future__ import annotations

from registry.worker.model.updates import cosines

__all__ = ["cosines"]
