"""REST schemas of attestations and signatures."""

from datetime import datetime

from pydantic import Field

from registry.api.models import ItemList, Request, Response
from registry.digest import Digest


class AttestationView(Response):
    """A signed statement about a version. It says who signed, not that the version is good."""

    kind: str
    """`push` and `verdict` are the registry's own. `signature` and `unverified` were sent by a client."""
    identity: str
    """Whose key signed. If `unverified`: why the signer is unknown."""
    digest: Digest
    """SHA-256 of the bundle."""
    size_bytes: int
    """Length of the bundle in bytes."""
    public_key: str = ""
    """Public key of the signer (PEM). Empty if a certificate in the bundle names it."""
    seq: int | None = None
    """Number of the event that records it; null if none does."""
    made_at: datetime
    """When the registry stored it."""
    made_by: str
    """Identity whose token sent it."""
    bundle: str = ""
    """Sigstore bundle or DSSE envelope, as text."""


class AttestationList(ItemList[AttestationView]):
    """The attestations of a version."""

    items: list[AttestationView]
    """Attestations of the version, oldest first."""


class SignRequest(Request):
    """A signature for a version, and the public key unless the bundle brings a certificate."""

    bundle: str = Field(min_length=2, max_length=512 * 2**10)
    """Sigstore bundle or DSSE envelope, as text."""
    public_key: str = Field(default="", max_length=4096)
    """Public key of the signer (PEM). Empty if a certificate in the bundle names it."""
