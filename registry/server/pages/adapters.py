"""The page of an adapter: its README, versions, aliases with their gates, and how to use it."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Query, Request, Response
from markupsafe import Markup
from sqlmodel import Session

from registry import names
from registry.adapters import formats
from registry.api import PREFIX
from registry.api.catalog import VersionView
from registry.api.serving import Convergence
from registry.errors import RegistryError, Unavailable
from registry.names import NEWEST, AdapterName
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.catalog import conclusions, files, version_groups, versions
from registry.server.catalog.search import adapters
from registry.server.catalog.verdicts import label
from registry.server.database import db
from registry.server.http.dependencies import ADAPTER, CursorDep, NameDep, QuickBlobsDep, SessionDep
from registry.server.http.services import services_of
from registry.server.pages.readme import READ_LIMIT_BYTES, render_readme
from registry.server.pages.rendering import adapter_path, create_router, render
from registry.server.pages.sessions.forms import may_change
from registry.server.pages.sessions.visitors import VisitorDep, record_page_read
from registry.server.promotion import aliases, gates, release_board
from registry.server.serving import status
from registry.server.serving.status import NodeFilter
from registry.server.storage.blobs import BlobStore, key_of
from registry.versions.files import CARD

router = create_router()
PAGE_VERSIONS = 20
DELETED_SHOWN = 20


@router.get(ADAPTER)
def show_adapter(
    request: Request, session: SessionDep, visitor: VisitorDep, name: NameDep, blobs: QuickBlobsDep, cursor: CursorDep,
    show: Annotated[str, Query(max_length=100)] = "",
) -> Response:  # fmt: skip
    """Show one adapter: what its aliases serve, and the README and the lines to copy of one version.

    That is the one that production serves, else the newest; or `show`, an alias or a number.
    """
    actor = visitor.actor
    adapter = adapters.show_adapter(session, actor, name)
    pointers = aliases.list_aliases(session, actor, name).items
    page = version_groups.list_versions(session, actor, name, cursor=cursor, limit=PAGE_VERSIONS)
    adapter_id = versions.find_adapter(session, actor, name).id
    effective = gates.find_gates(session, [(name, adapter_id, pointer.alias) for pointer in pointers])
    deleted = aliases.find_deleted(session, adapter_id, DELETED_SHOWN)
    production = next((p.alias for p in pointers if p.alias in release_board.PRODUCTION), "")
    selector = show or production or NEWEST
    version = versions.show(session, actor, name, names.selector(selector))
    reported = status.nodes(session, actor, NodeFilter(adapter=str(name)), limit=1) if visitor.signed_in else None
    nodes: dict[str, list[Convergence]] = defaultdict(list)
    for item in reported.convergence if reported else ():
        nodes[item.alias].append(item)
    concluded = conclusions.conclude_versions(session, {(name, pointer.number) for pointer in pointers})
    readme, problem = read_readme(session, actor, version, blobs)
    if readme:
        record_page_read(request, visitor, name, version.number)
    return render(
        request, "adapter.html", title=adapter.name, adapter=adapter, name=name, versions=page, cursor=cursor,
        version=version, aliases=sorted(pointers, key=lambda p: (p.alias == NEWEST, p.alias != production)),
        deleted=deleted, production=production, selector=selector, nodes=nodes,
        serves={of: conclusion for (_, of), conclusion in concluded.items()}, verdict_of=conclusions.conclude_view,
        gates={view.alias: view.gate.describe() for view in effective},
        readme=readme, readme_problem=problem, pull_line=f"adapter pull {_ref(name, selector)} ./{name.name}",
        examples=usage_examples(request, name, selector, version),
        trend=verdict_trend(page.items), may_promote=may_change(visitor, Scope.PROMOTE, name),
    )  # fmt: skip


def read_readme(session: Session, actor: Actor, version: VersionView, blobs: BlobStore) -> tuple[Markup | str, str]:
    """The README of a version as HTML, and why it cannot be read now: the rest of the page does not depend on it."""
    try:
        file = files.find_file(session, actor, AdapterName.parse(version.name), version.number, CARD)
        db.commit_early(session)
        data = bytes(blobs.read(key_of(file.digest), 0, min(file.size_bytes, READ_LIMIT_BYTES)))
        paths = frozenset(other.path for other in version.files)
        return render_readme(data, paths, adapter_path(version.name, version.number, "files")), ""
    except Unavailable as e:
        return "", e.detail
    except RegistryError:
        return "", ""


def verdict_trend(page: Sequence[VersionView]) -> dict[str, list[tuple[int, str]]]:
    """Label of a check → number and outcome of each version of a page, oldest first; empty where there is none."""
    outcomes = [
        (version.number, {label(v.check, v.profile, v.by_owner): str(v.outcome) for v in version.verdicts})
        for version in reversed(page)
    ]
    labels = dict.fromkeys(name for _, of_version in reversed(outcomes) for name in of_version)
    return {name: [(number, of_version.get(name, "")) for number, of_version in outcomes] for name in labels}


@dataclass(frozen=True, slots=True)
class UsageExample:
    """How one program uses an adapter: `title` names the program, `text` is to be copied."""

    title: str
    text: str


def registry_url(request: Request) -> str:
    """Return the URL of this server for clients: from the settings, else as this browser reached it."""
    return str(services_of(request).settings.public_url or request.base_url).rstrip("/")


def _ref(name: AdapterName, selector: str) -> str:
    is_fixed = selector.isdigit() or selector.startswith("sha256:")
    return f"{name}@{selector}" if is_fixed else f"{name}:{selector}"


def usage_examples(request: Request, name: AdapterName, selector: str, version: VersionView) -> list[UsageExample]:
    """Return the lines for an alias (`prod`), a number (`3`) or a digest. `version` says what is in its folder."""
    url = registry_url(request)
    ref = _ref(name, selector)
    revision = f"v{selector}" if selector.isdigit() else selector
    environment = f"export ADAPTER_REGISTRY={url}\nexport ADAPTER_TOKEN=…"
    hub = f"export HF_ENDPOINT={url}\nexport HF_TOKEN=…"
    is_image = formats.named(version.facts.get("format", "")).is_image
    engines = (
        _image_examples(name, ref, environment, version)
        if is_image
        else _text_examples(name, ref, revision, environment, hub, version)
    )
    return [
        UsageExample("adapter", f"{environment}\nadapter pull {ref} ./{name.name}"),
        *engines,
        UsageExample("hf", f"{hub}\nhf download {name} --revision {revision}"),
        UsageExample(
            "curl",
            "export ADAPTER_TOKEN=…\n"
            f'curl -H "Authorization: Bearer $ADAPTER_TOKEN" {url}{PREFIX}/resolve/{name}/{selector}',
        ),
    ]


def _text_examples(
    name: AdapterName, ref: str, revision: str, environment: str, hub: str, version: VersionView
) -> list[UsageExample]:
    return [
        UsageExample(
            "vLLM",
            f"{environment}\nexport ADAPTER_PLUGIN_BASE={version.base}\n"
            f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE_FOLDER --enable-lora\n"
            f'# request "model": "{ref}"',
        ),
        UsageExample(
            "SGLang",
            f"{environment}\nadapter pull {ref} ./{name.name}\n"
            f"python -m sglang.launch_server --model-path BASE_FOLDER --enable-lora \\\n"
            f"  --lora-paths {name.namespace}-{name.name}=./{name.name}",
        ),
        UsageExample(
            "PEFT",
            f"{hub}\npython - <<'END'\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n"
            f'base = AutoModelForCausalLM.from_pretrained("BASE_FOLDER")\n'
            f'model = PeftModel.from_pretrained(base, "{name}", revision="{revision}")\nEND',
        ),
    ]


def _image_examples(name: AdapterName, ref: str, environment: str, version: VersionView) -> list[UsageExample]:
    weights = next((file.path for file in version.files if file.path.endswith(".safetensors")), "FILE.safetensors")
    return [
        UsageExample(
            "diffusers",
            f"{environment}\nadapter pull {ref} ./{name.name}\npython - <<'END'\n"
            f'from diffusers import DiffusionPipeline\npipe = DiffusionPipeline.from_pretrained("BASE_FOLDER")\n'
            f"pipe.load_lora_weights({json.dumps(name.name)}, weight_name={json.dumps(weights)})\nEND",
        ),
        UsageExample("ComfyUI", f"{environment}\nadapter pull {ref} ComfyUI/models/loras/{name.namespace}-{name.name}"),
    ]
