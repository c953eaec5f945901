"""The Python interface: `AdapterRegistry`, and `AsyncAdapterRegistry` for asyncio. Base install only.

torch, PEFT and diffusers are never imported here: a model that the caller passes brings them.
"""

from registry.sdk.asynchronous import AsyncAdapterRegistry
from registry.sdk.registry import AdapterRegistry, FailedCheckWarning, NotTested

__all__ = ["AdapterRegistry", "AsyncAdapterRegistry", "FailedCheckWarning", "NotTested"]
