"""What the Hub has and this registry has not: the word in the path of its API, and what to do instead.

- The word is in `/api/WORD`, `/api/settings/WORD`, `/api/models/NAMESPACE/NAME/WORD`, `/datasets` or `/spaces`.
"""

import re

from registry.errors import Refused

_NO_OTHER_KINDS = "this registry holds adapters, and no data sets, spaces or buckets", "keep them in another Hub"
_NO_PULL_REQUESTS = (
    "this registry has no discussions and no pull requests",
    "commit to a branch: it is an alias, and its gate may need an approval",
)
_NO_LIKES = "this registry has no likes", "tag an adapter: `adapter tag add`"
_NO_ACCESS_REQUESTS = (
    "no repository of this registry is gated, so none has access requests",
    "an owner of the namespace gives roles: `adapter namespace grant`",
)
_NO_PEOPLE = "this registry has no profiles", "`adapter namespace show` lists who has a role"
_NO_COMPUTE = "this registry runs no jobs of Hub clients", "`adapter job list` shows its own tests and merges"
NO_RESOURCE_GROUPS = "this registry has no resource groups", "give roles: `adapter namespace grant`"
_NO_PUBLIC_LIFE = "this registry has no papers, posts and notifications", "ask the Hub itself for them"

_ABSENT = {
    "datasets": _NO_OTHER_KINDS,
    "spaces": _NO_OTHER_KINDS,
    "buckets": _NO_OTHER_KINDS,
    "kernels": _NO_OTHER_KINDS,
    "datasets-tags-by-type": _NO_OTHER_KINDS,
    "discussions": _NO_PULL_REQUESTS,
    "like": _NO_LIKES,
    "likers": _NO_LIKES,
    "collections": ("this registry has no collections", "tag adapters (`adapter tag add`) and filter lists by the tag"),
    "webhooks": ("the webhooks of this registry are not those of the Hub", "make one with `adapter webhook create`"),
    "watch": ("this registry has no watched repositories", "make a webhook with `adapter webhook create`"),
    "ask-access": _NO_ACCESS_REQUESTS,
    "user-access-request": _NO_ACCESS_REQUESTS,
    "user-access-report": _NO_ACCESS_REQUESTS,
    "users": _NO_PEOPLE,
    "organizations": _NO_PEOPLE,
    "resource-group": NO_RESOURCE_GROUPS,
    "lfs-files": ("this registry has no list of all large files", "list the files of a version instead"),
    "duplicate": ("this registry copies no repositories", "push the files to the other name: none is sent twice"),
    "models-tags-by-type": ("this registry has no list of all tags", "`adapter list --tag` filters by one"),
    "jobs": _NO_COMPUTE,
    "scheduled-jobs": _NO_COMPUTE,
    "tasks": _NO_COMPUTE,
    "papers": _NO_PUBLIC_LIFE,
    "daily_papers": _NO_PUBLIC_LIFE,
    "notifications": _NO_PUBLIC_LIFE,
}  # fmt: skip

_OTHER_REPOSITORY = re.compile(r"/api/(datasets|spaces)/[^/]+/[^/]+(/revision/[^/]+)?")


def is_other_repository(path: str) -> bool:
    """Whether it is the path of a data set or a space: clients ask whether it exists."""
    return _OTHER_REPOSITORY.fullmatch(path) is not None


def explain(path: str) -> Refused | None:
    """The error (HUB_UNSUPPORTED) for a path of the Hub that this registry never has; None for any other path."""
    _, first, *words = f"{path}///////".split("/")
    if first != "api":
        word = first if first in ("datasets", "spaces") else ""
    elif words[0] == "models":
        word = words[3]
    else:
        word = words[1] if words[0] == "settings" else words[0]
    if word not in _ABSENT:
        return None
    message, next_step = _ABSENT[word]
    return Refused("HUB_UNSUPPORTED", message, next_step=next_step)
