"""The page of an adapter: its README, versions, aliases with their gates, and how to use it."""

from dataclasses import dataclass

from fastapi import Request, Response
from markupsafe import Markup
from sqlmodel import Session

from registry.api import PREFIX
from registry.errors import RegistryError
from registry.evaluation.gates import Gate
from registry.names import NEWEST, AdapterName
from registry.server.actors import Actor
from registry.server.catalog import files, versions
from registry.server.catalog import search as adapters
from registry.server.database import db
from registry.server.http.dependencies import ADAPTER, BlobsDep, CursorDep, NameDep, SessionDep
from registry.server.pages.readme import READ_LIMIT_BYTES, render_readme
from registry.server.pages.rendering import create_router, render
from registry.server.promotion import aliases, gates
from registry.server.sessions.visitors import VisitorDep, record_page_read
from registry.server.storage.blobs import BlobStore, key_of
from registry.versions.files import CARD

router = create_router()
PAGE_VERSIONS = 20


@router.get(ADAPTER)
def show_adapter(
    request: Request, session: SessionDep, visitor: VisitorDep, name: NameDep, blobs: BlobsDep, cursor: CursorDep
) -> Response:
    """Show one adapter."""
    actor = visitor.actor
    adapter = adapters.show_adapter(session, actor, name)
    pointers = aliases.list_aliases(session, actor, name).items
    page = versions.list_versions(session, actor, name, cursor=cursor, limit=PAGE_VERSIONS)
    adapter_id = versions.find_adapter(session, actor, name).id
    effective = gates.find_gates(session, [(name, adapter_id, pointer.alias) for pointer in pointers])
    newest = page.items[0] if page.items and not cursor else None
    has_readme = newest is not None and any(file.path == CARD for file in newest.files)
    readme = _read_readme(session, actor, name, adapter.newest, blobs) if has_readme else ""
    if readme:
        record_page_read(request, visitor, name, adapter.newest)
    shown_alias = next((p.alias for p in pointers if p.alias in ("prod", "production")), NEWEST)
    return render(
        request, "adapter.html", title=adapter.name, adapter=adapter, name=name, versions=page, cursor=cursor,
        newest=newest, aliases=pointers, gates={view.alias: describe_gate(view.gate) for view in effective},
        readme=readme, alias=shown_alias,
        examples=usage_examples(request, name, shown_alias, adapter.base),
    )  # fmt: skip


def _read_readme(session: Session, actor: Actor, name: AdapterName, number: int, blobs: BlobStore) -> Markup | str:
    """The README of a version as HTML; empty if it cannot be read: the rest of the page does not depend on it."""
    try:
        file = files.find_file(session, actor, name, number, CARD)
        db.commit_early(session)
        return render_readme(bytes(blobs.read(key_of(file.digest), 0, min(file.size_bytes, READ_LIMIT_BYTES))))
    except RegistryError:
        return ""


def describe_gate(gate: Gate) -> list[str]:
    """What a gate requires, in words; empty for nothing."""
    required = [check for check in gate.requires if check not in gate.passes]
    return [
        *([f"{' and '.join(required)} must not fail"] if required else []),
        *([f"{' and '.join(gate.passes)} must pass without warnings"] if gate.passes else []),
        *(f"{profile} must serve it" for profile in gate.engines),
        *(["golden samples must pass"] if gate.golden else []),
        *([_describe_approvals(gate)] if gate.approvals else []),
        *([f"{gate.soak_seconds / 3600:.3g} hours as {gate.soak_in}"] if gate.soak_in else []),
        *([f"signed by {' or '.join(gate.signed_by)}"] if gate.signed_by else []),
    ]


def _describe_approvals(gate: Gate) -> str:
    people = f" of {', '.join(gate.approvers)}" if gate.approvers else ""
    return f"{gate.approvals} approval{'s' * (gate.approvals > 1)}{people}" + (
        ", not by the promoter" if gate.two_person else ""
    )


# ------------------------------------------------------------------ usage
@dataclass(frozen=True, slots=True)
class UsageExample:
    """How one program uses an adapter: `title` names the program, `text` is to be copied."""

    title: str
    text: str


def registry_url(request: Request) -> str:
    """Return the URL of this server for clients: from the settings, else as this browser reached it."""
    return str(request.app.state.settings.public_url or request.base_url).rstrip("/")


def usage_examples(request: Request, name: AdapterName, selector: str, base: str) -> list[UsageExample]:
    """Return the lines for an alias (`prod`), a number (`3`) or a digest."""
    url = registry_url(request)
    ref = f"{name}@{selector}" if selector.isdigit() or selector.startswith("sha256:") else f"{name}:{selector}"
    revision = f"v{selector}" if selector.isdigit() else selector
    environment = f"export ADAPTER_REGISTRY={url}\nexport ADAPTER_TOKEN=…"
    hub = f"export HF_ENDPOINT={url}\nexport HF_TOKEN=…"
    return [
        UsageExample("adapter", f"{environment}\nadapter pull {ref} ./{name.name}"),
        UsageExample(
            "vLLM",
            f"{environment}\nexport ADAPTER_PLUGIN_BASE={base}\n"
            f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE_FOLDER --enable-lora\n"
            f'# request "model": "{ref}"',
        ),
        UsageExample(
            "PEFT",
            f"{hub}\npython - <<'END'\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n"
            f'base = AutoModelForCausalLM.from_pretrained("BASE_FOLDER")\n'
            f'model = PeftModel.from_pretrained(base, "{name}", revision="{revision}")\nEND',
        ),
        UsageExample("hf", f"{hub}\nhf download {name} --revision {revision}"),
        UsageExample("curl", f'curl -H "Authorization: Bearer $ADAPTER_TOKEN" {url}{PREFIX}/resolve/{name}/{selector}'),
    ]
