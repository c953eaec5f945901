"""The base of a push: the row that its manifest or its request names."""

from collections.abc import Mapping

from registry.bases import UNREGISTERED
from registry.errors import Invalid
from registry.findings import Finding
from registry.server.catalog import base_rows
from registry.server.database.models import BaseRow
from registry.versions.manifest import BaseRef


def find_base(bases: Mapping[str, BaseRow], name: str, reference: BaseRef | None, *, unregistered: bool) -> BaseRow:
    """The base of this name. `NotFound` (BASE_UNKNOWN), `Invalid` if a manifest has an alias or another fingerprint.

    A version keeps its manifest, and an alias may end: so a manifest names a base by its own name. `unregistered`: a
    base that does not exist is a row which is not stored. A manifest with only its name fits the base once it exists.
    """
    base = bases.get(name)
    is_only_name = reference is not None and reference.fingerprint == UNREGISTERED
    if base is None and unregistered and (reference is None or is_only_name):
        return base_rows.build_unregistered(name)
    if base is None:
        raise base_rows.unknown_base(name)
    if is_only_name:
        return base
    if reference is not None and base.name != name:
        message = f"is an alias of the base '{base.name}'"
        raise Invalid(
            "BASE_INVALID",
            f"'{name}' {message}",
            findings=[Finding("base.is_alias", name, message)],
            next_step=f"name the base '{base.name}' in the manifest",
        )
    if reference is not None and base.fingerprint != reference.fingerprint:
        message = f"has the fingerprint {base.fingerprint} here, and the manifest says {reference.fingerprint}"
        raise Invalid(
            "BASE_INVALID",
            f"base '{base.name}' {message}",
            findings=[Finding("base.fingerprint_differs", base.name, message)],
            next_step="the adapter was trained on another model of this name: register that model under its own name",
        )
    return base
