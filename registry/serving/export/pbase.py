"""`Pbase`: what LoRAX asks its source `pbase` for, as files beside an export, for any web server to hand out.

    FOLDER/v2/repos/acme-support/version/3      {"adapterPath": "s3://models/prod/acme-support-v3/", …}

LoRAX turns `acme-support/3` into that path below PREDIBASE_GATEWAY_ENDPOINT and reads `status` and `adapterPath`
(map_pbase_model_id_to_s3 in lorax_server/utils/sources/__init__.py).

Invariants
- A path is written once its bytes are there, and taken away when an export has removed them. It is never a guess.
- It ends in a slash: LoRAX lists by raw prefix, and `…-v1` is one of `…-v10`.
- A version whose served name had to be told apart from another one's has no name in this dialect, and is left out.
"""

from __future__ import annotations

import json
from pathlib import Path

from registry.durable import replace_file
from registry.errors import Invalid, Unavailable
from registry.serving.export.export import Exported, Item

READY = "completed"
"""LoRAX's word for a version that may be loaded; it warns of others with each look-up."""


def write(folder: Path, exported: Exported) -> int:
    """Say where each version of an export in a bucket lies; how many. `Invalid` (URL_REFUSED) for another place."""
    if not exported.location.startswith("s3://"):
        raise Invalid("URL_REFUSED", f"{exported.location}: LoRAX's source pbase leads to buckets only")
    there = 0
    try:
        for item in exported.items:
            path = _path(folder, item)
            if path is not None and item.state in ("new", "unchanged"):
                path.parent.mkdir(parents=True, exist_ok=True)
                document = {
                    "adapterPath": f"{exported.location}{item.served_name}/",
                    "digest": item.digest,
                    "status": READY,
                }
                replace_file(path, json.dumps(document).encode())
                there += 1
            elif path is not None and item.state == "removed":
                path.unlink(missing_ok=True)
    except OSError as e:
        raise Unavailable("STORE_UNAVAILABLE", f"{folder} cannot be written: {e.strerror or e}") from e
    return there


def _path(folder: Path, item: Item) -> Path | None:
    name, mark, number = item.served_name.rpartition("-v")
    if not mark or not number.isdigit():
        return None
    return folder / "v2" / "repos" / name / "version" / number
