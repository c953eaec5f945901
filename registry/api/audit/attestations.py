"""REST schemas of attestations and signatures."""

from datetime import datetime

from pydantic import Field

from registry.api.models import ItemList, Request, Response
from registry.digest import Digest


class AttestationView(Response):
    """A signed statement about a version. It says who signed, not that the version is good."""

    kind: str
    identity: str
    digest: Digest
    size_bytes: int
    public_key: str = ""
    seq: int | None = None
    made_at: datetime
    made_by: str
    bundle: str = ""


class AttestationList(ItemList[AttestationView]):
    """The attestations of a version."""


class SignRequest(Request):
    """A signature for a version, and the public key unless the bundle brings a certificate."""

    bundle: str = Field(min_length=2, max_length=512 * 2**10)
    public_key: str = Field(default="", max_length=4096)
