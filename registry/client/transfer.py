"""Push and pull in one room, for programs of others: `from registry.client import transfer`.

Our own commands take the room that they need (`push`, `pull`): either loads half of what both do.
"""

from __future__ import annotations

from registry.client.base_folder import base_spec_from
from registry.client.pull import USER_CACHE, pull, verify
from registry.client.push import Bases, Signature, push_folder

__all__ = ["USER_CACHE", "Bases", "Signature", "base_spec_from", "pull", "push_folder", "verify"]
