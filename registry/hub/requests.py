"""JSON bodies of the Hub API. Clients send more fields than are read here, and more with each release."""

from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field

from registry.api.models import Request

BATCH_LIMIT = 1000
"""Files in one body."""


class HubRequest(Request):
    """The base of all bodies."""

    model_config = ConfigDict(extra="ignore")


Shape = TypeVar("Shape", bound=HubRequest)


class Repository(HubRequest):
    """A repository to create or to delete, or the settings of one. null stands for a field that is not sent."""

    type: str | None = None
    organization: str | None = None
    name: str | None = None
    private: bool | None = None
    visibility: str | None = None
    resource_group: str | None = Field(None, alias="resourceGroupId")
    gated: bool | str | None = None

    @property
    def wants_private(self) -> bool:
        """Whether it is asked to be private."""
        return self.private is True or self.visibility == "private"

    @property
    def wants_public(self) -> bool:
        """Whether it is asked to be public."""
        return self.private is False or self.visibility == "public"


class Rename(HubRequest):
    """A repository's name and its new one."""

    type: str | None = None
    old: str = Field(alias="fromRepo")
    new: str = Field(alias="toRepo")


class Branch(HubRequest):
    """Where a new branch starts: a revision."""

    start: str | None = Field(None, alias="startingPoint")


class Tag(HubRequest):
    """The name of a new tag."""

    tag: str = ""


class Card(HubRequest):
    """The text of a README.md."""

    content: str = ""


class FileOfCommit(HubRequest):
    """A file that a client wants to commit."""

    path: str
    size: Annotated[int, Field(ge=0)]


class FilesOfCommit(HubRequest):
    """The files that a client wants to commit."""

    files: Annotated[list[FileOfCommit], Field(max_length=BATCH_LIMIT)]


class LargeObject(HubRequest):
    """A large file: the SHA-256 of its bytes in hex, and how many they are."""

    oid: str
    size: Annotated[int, Field(ge=0)]


class LargeObjects(HubRequest):
    """Large files to upload, as Git LFS has them."""

    operation: str
    hash_algo: str = "sha256"
    objects: Annotated[list[LargeObject], Field(max_length=BATCH_LIMIT)]


class Paths(HubRequest):
    """Paths of a revision to describe, and whether with the commit that changed each last."""

    paths: list[str] = []
    expand: bool = False
