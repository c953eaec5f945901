"""How pages are rendered: templates, response headers, errors as pages, and the files that pages link to.

- Templates escape every text. A name that a template does not know is an error.
- The content security policy allows this server's own style sheet and images, and nothing else. Live pages also have
  this server's one script; all others have none.
- The style sheet, the script and the icon have their digest in their names, so that browsers keep them.
"""

import datetime
import re
import secrets
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from registry import __version__, finding_catalog
from registry.digest import Digest
from registry.durations import format_duration, relative
from registry.errors import NotFound, RegistryError
from registry.next_steps import NextStep, StepKind
from registry.server.database import db
from registry.server.http import routing
from registry.server.http.dependencies import NO_TOKEN
from registry.server.http.services import services_of
from registry.server.pages.sessions import sent_forms, visitors
from registry.server.pages.sessions.inner_requests import PageInstead
from registry.server.pages.sessions.visitors import Visitor, find_visitor

FOLDER = Path(__file__).parent
MARKS_LIMIT = 6
"""Combining marks after one character that a page shows: Hebrew with cantillation and Tibetan stacks have up to six."""
_MANY_MARKS = re.compile(rf"[^\x00-\u02ff\w\s]{{{MARKS_LIMIT + 1},}}")
"""Marks are neither letters nor spaces; other signs that match are let through."""
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
LIVE_POLICY = {"Content-Security-Policy": f"{POLICY}; script-src 'self'; connect-src 'self'"}
SECURITY_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "same-origin",  # with `no-referrer` browsers send forms without their origin
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}
PRIVATE = {"Cache-Control": "private, no-store", "Vary": "Cookie, Authorization"}
IMMUTABLE = "public, max-age=31536000, immutable"
NAVIGATION = (
    ("/search", "Adapters"), ("/bases", "Bases"), ("/compare", "Compare"), ("/fleet", "Fleet"), ("/jobs", "Jobs"),
    ("/audit", "Audit"), ("/settings", "Settings"), ("/status", "Status"),
)  # fmt: skip
"""The links at the top of every page. Before signing in there is only the first one."""
OUTCOME, OUTCOME_SECONDS = "adapter-outcome", 60
"""The cookie that names the form which has just succeeded, for the page that comes next."""
DONE = {
    "approve_version": "The version is approved.",
    "promote_alias": "The alias points at this version now.",
    "rollback_alias": "The alias is rolled back.",
    "delete_alias": "The alias is deleted.",
    "change_version": "The version is changed.",
    "release_versions": "What was chosen is approved or promoted.",
    "cancel_job": "The job is cancelled.",
    "cancel_jobs": "The jobs that still waited are cancelled.",
    "repeat_job": "The test is queued again.",
    "create_namespace": "The namespace is created.",
    "change_namespace": "The namespace is changed.",
    "change_member": "The members are changed.",
    "change_retention": "The retention rule is changed.",
    "add_publisher": "The publisher is trusted now.",
    "delete_publisher": "The publisher is deleted.",
    "revoke_token": "The token is revoked.",
    "delete_webhook": "The webhook is deleted.",
    "retry_delivery": "The message is sent again.",
}
"""The name of the route of a form → what the next page says of it."""
_ASSET_TYPES = {
    "style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml", "live.js": "text/javascript; charset=utf-8",
}  # fmt: skip


class PageRoute(routing.SingleThreadRoute):
    """The class of all routes of pages: an error is a page, too."""

    async def _respond(self, handle: routing.Handler, request: Request) -> Response:
        """Handle a request. A form that is refused is remembered while its body is there."""
        try:
            response = await super()._respond(handle, request)
        except RegistryError:
            if request.method == "POST" and not self.path.startswith("/sign-"):
                request.state.sent_form = sent_forms.read_sent(request)
            raise
        if response.status_code == 303 and self.name in DONE:
            visitors.set_cookie(request, response, OUTCOME, self.name, OUTCOME_SECONDS)
        return response

    def error_response(self, request: Request, error: RegistryError, status: int) -> Response:
        """Return the page for an error. Who deleted a version, and why, is shown after signing in."""
        visitor: Visitor | None = getattr(request.state, "visitor", None)
        if error.code in ("VERSION_DELETED", "ADAPTER_DELETED") and not (visitor and visitor.signed_in):
            error = NotFound(error.code, "this version was deleted")
        if status == 405:  # as after the address of a form was opened: no dependency has run
            return render_unknown(request, error, status)
        form: sent_forms.SentForm | None = getattr(request.state, "sent_form", None)
        if form is None:
            return _render_error(request, error, status)
        if visitor is None or not visitor.signed_in:
            return _render_signed_out(request, status, form)
        error_page = _render_error(request, error, status)
        return PageInstead(request, error_page, form.page, partial(_show_again, form, error))


def render_unknown(request: Request, error: RegistryError, status: int) -> Response:
    """Return the page for an address that no route has."""
    with suppress(RegistryError), db.session(services_of(request).engine, write=False) as session:
        request.state.visitor = find_visitor(request, session)
    return _render_error(request, error, status)


def _render_error(request: Request, error: RegistryError, status: int) -> Response:
    back = sent_forms.page_of_form(request)
    return render(request, "error.html", status, title=error.TITLE, error=error, status=status, back=back)


def _show_again(form: sent_forms.SentForm, error: RegistryError, html: str) -> str:
    """The page that sent a form, with what was wrong with it."""
    name, _, rest = error.detail.partition(": ")
    is_of_field = bool(rest) and name in form.fields
    problem = _macro("problem_text")(error, rest if is_of_field else error.detail)
    button = "anyway" if error.code == "ALIAS_MOVED" else ""
    return sent_forms.fill_in(html, form, problem, name if is_of_field else "", button=button)


def _macro(name: str) -> Any:
    return getattr(_ENVIRONMENT.get_template("macros.html").module, name)


def _render_signed_out(request: Request, status: int, form: sent_forms.SentForm) -> Response:
    cookie = sent_forms.pack(request, form)
    page = render(request, "signed_out.html", status, title="Signed out", is_kept=bool(cookie), page=form.page)
    if cookie:
        visitors.set_cookie(request, page, sent_forms.WAITING_FORM, cookie, sent_forms.WAIT_SECONDS)
    return page


router = APIRouter(route_class=PageRoute, include_in_schema=False, dependencies=[NO_TOKEN])
create_router = partial(APIRouter, route_class=PageRoute, include_in_schema=False, dependencies=[NO_TOKEN])


def _read_assets() -> dict[str, tuple[bytes, str]]:
    """Return name with digest → bytes and media type."""
    assets = {}
    for name, media_type in _ASSET_TYPES.items():
        data = (FOLDER / name).read_bytes()
        stem, _, suffix = name.partition(".")
        assets[f"{stem}-{Digest.of(data).hex[:16]}.{suffix}"] = (data, media_type)
    return assets


_ASSETS = _read_assets()


def asset_path(name: str) -> str:
    """Return the path of a file of the pages.

    >>> asset_path("icon").startswith("/assets/icon-")
    True
    """
    return next(f"/assets/{file}" for file in _ASSETS if file.startswith(f"{name}-"))


@router.get("/assets/{file}")
def read_asset(file: str) -> Response:
    """Read the style sheet, the script or the icon."""
    if file not in _ASSETS:
        raise NotFound("ROUTE_UNKNOWN", f"there is no file {file[:100]!r}")
    data, media_type = _ASSETS[file]
    return Response(data, headers=SECURITY_HEADERS | {"Cache-Control": IMMUTABLE}, media_type=media_type)


def format_size(size_bytes: int) -> str:
    """Return a size for people.

    >>> format_size(999), format_size(31_457_280)
    ('999 B', '30 MiB')
    """
    size, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1000:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if size >= 100 or size == int(size) else f"{size:.1f} {unit}"


def format_time(at: datetime.datetime, *, seconds: bool = False) -> str:
    """Return a time for people: UTC, to the minute or the second."""
    return at.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


def format_number(value: float | None) -> str:
    """Return a number with three digits; a dash for none."""
    return "–" if value is None else f"{value:.3g}"


def adapter_path(name: str, selector: object = "", rest: str = "") -> str:
    """Return the path of the page of an adapter, or of one of its versions.

    >>> adapter_path("acme/support", 3, "lineage")
    '/adapters/acme/support/versions/3/lineage'
    """
    path = f"/adapters/{name}" + (f"/versions/{selector}" if selector else "") + (f"/{rest}" if rest else "")
    return quote(path, safe="/:@")


def format_amount(count: int) -> str:
    """Return a large count for people; a dash for 0, which stands for an unknown one.

    >>> format_amount(7_168), format_amount(8_030_261_248)
    ('7.17 k', '8.03 B')
    """
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count) if count else "–"


SPARK_WIDTH, SPARK_HEIGHT = 240, 48


def sparkline_points(values: Sequence[tuple[float, float]]) -> str:
    """Return the points of a line through these x and y for the macro `sparkline`; without any, an empty text.

    >>> sparkline_points([(1, 10), (2, 30), (3, 20)])
    '0.0,48.0 120.0,0.0 240.0,24.0'
    """
    if not values:
        return ""
    xs, ys = zip(*values, strict=True)
    lowest, highest, width, height = min(xs), max(ys), max(xs) - min(xs) or 1.0, max(ys) - min(ys) or 1.0
    return " ".join(
        f"{(x - lowest) / width * SPARK_WIDTH:.1f},{(highest - y) / height * SPARK_HEIGHT:.1f}" for x, y in values
    )


def short_label(label: str) -> str:
    """Return the label of a verdict without the settings of its engine.

    >>> short_label("engine vllm==0.33.0,max_lora_rank=32"), short_label("smoke")
    ('vllm 0.33.0', 'smoke')
    """
    return label.removeprefix("engine ").partition(",")[0].replace("==", " ")


def format_prose(text: str) -> Markup:
    """Return a sentence of an error for people: a capital at its beginning, and what stands in backticks as code.

    >>> format_prose("run `adapter list` <again>")
    Markup('Run <code>adapter list</code> &lt;again&gt;')
    """
    parts = (text[:1].upper() + text[1:]).split("`")
    if len(parts) % 2 == 0:  # a backtick without its pair
        return escape(text)
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(part) if index % 2 else escape(part) for index, part in enumerate(parts))


_STEPS_ON_PAGES = {
    StepKind.APPROVE: "approve the version with the form {there}",
    StepKind.SOAK: "promote it there and wait: the page of the alias says how long it still takes",
    StepKind.SHOW_VERSION: "look at the page of the version",
    StepKind.SHOW_HISTORY: "open the page of the alias again: it shows the last move",
    StepKind.CHOOSE_VERSION: "promote one with the form {there}",
    StepKind.DELETE_ALIAS: "delete one on its page",
    StepKind.RELEASE_ALIAS: "let them follow another alias, or delete it with `adapter alias delete --force`",
}
"""What a person on a page does; other steps are commands there, too."""


def format_step(step: NextStep | str, there: str = "on the page of the alias") -> Markup:
    """Return a next step for people who are on a page: a form instead of a command, if there is one.

    >>> format_step(NextStep(StepKind.APPROVE, "acme/support@3", "prod", ask=("ann",)))
    Markup('Ask ann to approve the version with the form on the page of the alias')
    """
    if isinstance(step, str):
        return format_prose(step)
    if step.kind not in _STEPS_ON_PAGES:
        return format_prose(step.as_command())
    return format_prose(step.whom() + _STEPS_ON_PAGES[step.kind].format(there=there))


def section_of(address: str) -> str:
    """Return the link at the top of a page to which the page at this address belongs.

    >>> section_of("/adapters/acme/support"), section_of("/settings/tokens?cursor=1")
    ('/search', '/settings')
    """
    first = address.partition("?")[0].split("/")[1]
    return {"": "/search", "adapters": "/search", "namespaces": "/search", "campaigns": "/jobs"}.get(first, f"/{first}")


def base_path(name: str) -> str:
    """Return the path of the page of a base."""
    return f"/bases/{quote(name)}"


def _query(values: dict[str, Any], **changes: Any) -> str:
    """Return a query of the values that are not empty."""
    return urlencode({key: value for key, value in (values | changes).items() if value not in ("", None)})


def limit_marks(value: Any) -> Any:
    """Return a text of a page with at most `MARKS_LIMIT` combining marks a character; other values as they are.

    Hundreds of marks would be painted over the lines above. What is too wide is for the style sheet to cut.
    """
    if not isinstance(value, str) or value.isascii():
        return value
    text = _MANY_MARKS.sub(_cut_marks, str(value))
    return Markup(text) if isinstance(value, Markup) else text  # noqa: S704  # safe text that lost marks


def _cut_marks(match: re.Match[str]) -> str:
    characters, marks = [], 0
    for character in match[0]:
        category = unicodedata.category(character)
        marks = marks + 1 if category[0] == "M" else marks if category == "Cf" else 0
        if marks <= MARKS_LIMIT:
            characters.append(character)
    return "".join(characters)


_ENVIRONMENT = Environment(
    finalize=limit_marks,
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "amount": format_amount, "base_path": base_path, "duration": format_duration, "moment": format_time,
    "fix": finding_catalog.fix_of, "number": format_number, "prose": format_prose, "relative": relative,
    "short_label": short_label, "size": format_size, "step": format_step,
}  # fmt: skip
_ENVIRONMENT.globals |= {
    "asset_path": asset_path, "adapter_path": adapter_path, "navigation": NAVIGATION, "query": _query,
    "random_text": partial(secrets.token_urlsafe, 12), "registry_version": __version__, "section_of": section_of,
}  # fmt: skip


def render(request: Request, template: str, status: int = 200, /, *, is_live: bool = False, **values: Any) -> Response:
    """Return a page. `title` is what its tab says. Nothing but the browser itself may keep it.

    `address` leads back to it, as after signing in: for a form, which nobody can open, that is the page that sent it.
    """
    visitor: Visitor | None = getattr(request.state, "visitor", None)
    query = f"?{request.url.query}" if request.url.query else ""
    address = sent_forms.page_of_form(request) or request.url.path + query
    is_shown = request.method == "GET" and status == 200
    done = DONE.get(visitors.read_cookie(request, OUTCOME), "") if is_shown else ""
    html = _ENVIRONMENT.get_template(template).render(
        visitor=visitor, address=address, is_live=is_live, done=done, **values
    )
    form = sent_forms.find_kept(request, address) if is_shown and visitor and visitor.signed_in else None
    if form is not None:
        html = sent_forms.fill_in(html, form, _macro("kept_text")(), kind="warn")
    headers = SECURITY_HEADERS | PRIVATE | (LIVE_POLICY if is_live else {})
    response = Response(html, status, headers, media_type="text/html; charset=utf-8")
    for cookie in [name for name, is_used in ((OUTCOME, done), (sent_forms.WAITING_FORM, form)) if is_used]:
        visitors.set_cookie(request, response, cookie, "")
    return response


def redirect(path: str) -> Response:
    """Return a redirect to a path of this server, after a form."""
    return Response(status_code=303, headers=SECURITY_HEADERS | PRIVATE | {"Location": path})
