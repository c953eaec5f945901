"""Who visits a page: the session of its cookie, or no one, who sees public namespaces only. And the checks of forms.

- Without sign-in no page shows who did something, reasons of moves and deletions, or gates: REST shows nothing then.
- A request with an Authorization header has the rights of its token, as in the REST API.
- A form is accepted only from a page of this server: the browser's headers must say so if it sends them, and the form
  must repeat a value that is derived from an HttpOnly cookie, which no other site can read or set.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from fastapi import Depends, Request, Response
from sqlmodel import Session, select

from registry.errors import Denied, Invalid, Unauthenticated
from registry.names import AdapterName, Selector
from registry.roles import Scope
from registry.server.access import epoch
from registry.server.actors import Actor
from registry.server.http.dependencies import SessionDep
from registry.server.http.request_actor import count_request, current_actor, record_read
from registry.server.http.services import services_of
from registry.server.pages.sessions import page_sessions

FIELDS_LIMIT = 100
NEXT_LIMIT = 500
COOKIE_LIMIT = 1000
FORM_FIELD = "form_token"
PAGE_FIELD = "page_of_form"
"""The page that a form belongs to, where the browser's address is another: after the form was refused once."""
_FORM_TYPE = "application/x-www-form-urlencoded"
_LOCAL_PATH = re.compile(r"/(?![/\\])[!-\[\]-~]*\Z")
"""A path of this server: one slash, then visible ASCII without a backslash, which browsers read as a slash."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """`form_token`: what forms of this visitor's pages must repeat; empty for those who have no session.

    `provider`: the identity provider by which they signed in. `is_confirmed`: it has just asked them again. `by_link`:
    they signed in by the link of `adapter serve`.
    """

    actor: Actor
    signed_in: bool
    form_token: str = field(default="", repr=False)
    provider: str = ""
    is_confirmed: bool = False
    by_link: bool = False

    @property
    def name(self) -> str:
        """What the page calls the visitor."""
        return self.actor.identity


# ------------------------------------------------------------------ cookies
def _is_https(request: Request) -> bool:
    public_url = services_of(request).settings.public_url
    return (public_url or str(request.base_url)).startswith("https:")


def _cookie_name(request: Request, name: str) -> str:
    """Return the name under https, which no other host can set, or the plain one."""
    return f"__Host-{name}" if _is_https(request) else name


def read_cookie(request: Request, name: str, limit: int = COOKIE_LIMIT) -> str:
    """Return the value of a cookie; empty without one."""
    return request.cookies.get(_cookie_name(request, name), "")[:limit]


def set_cookie(request: Request, response: Response, name: str, value: str, seconds: int | None = None) -> None:
    """Set a cookie that scripts cannot read, by default until the browser closes; an empty value deletes it."""
    response.set_cookie(
        _cookie_name(request, name), value, max_age=seconds if value else 0, path="/", secure=_is_https(request),
        httponly=True, samesite="lax",
    )  # fmt: skip


SESSION, FORM, ATTEMPT = "adapter-session", "adapter-form", "adapter-attempt"
"""The cookies: of a session, of the form for signing in, and of a sign-in at an identity provider."""


# ------------------------------------------------------------------ visitors
async def read_visitor(request: Request, session: SessionDep) -> Visitor:
    """The dependency that says who visits. It leaves the visitor in `request.state`."""
    visitor: Visitor = find_visitor(request, session)
    request.state.visitor = visitor
    return visitor


def find_visitor(request: Request, session: Session) -> Visitor:
    """Return who visits, with the rights of now. `Unavailable` (RATE_LIMITED)."""
    services = services_of(request)
    if "authorization" in request.headers or services.trusted is not None:
        return Visitor(current_actor(request), signed_in=True)
    cache = services.actor_cache
    session_id = read_cookie(request, SESSION)
    browser = page_sessions.find(session, session_id, cache) if session_id else None
    if browser is not None:
        count_request(request, browser.actor.token_id)
        request.state.actor = browser.actor  # the audit log names it if the request is denied
        return Visitor(
            browser.actor, True, form_token(session_id), browser.provider, browser.is_confirmed, browser.by_link
        )
    count_request(request)
    public = frozenset[str]()
    if services.settings.pages != "private":
        public = cache.public_namespaces(session, session.exec(select(epoch.current())).one())
    return Visitor(Actor("anonymous", "", frozenset({Scope.PULL}), frozenset(), public=public), signed_in=False)


def require(visitor: Visitor) -> Visitor:
    """Raise `Unauthenticated` for a visitor who has not signed in."""
    if not visitor.signed_in:
        raise Unauthenticated("UNAUTHORIZED", "sign in to see this page")
    return visitor


async def require_visitor(visitor: Annotated[Visitor, Depends(read_visitor)]) -> Visitor:
    """The dependency of pages that no one sees before signing in. `Unauthenticated`."""
    return require(visitor)


VisitorDep = Annotated[Visitor, Depends(read_visitor)]
SignedInDep = Annotated[Visitor, Depends(require_visitor)]


def record_page_read(request: Request, visitor: Visitor, name: AdapterName, selector: Selector) -> None:
    """Record in the audit log that a page shows bytes of this version. What everyone may read is not recorded."""
    if visitor.signed_in:
        record_read(request, name, selector, on_page=True)


# ------------------------------------------------------------------ forms
def form_token(cookie: str) -> str:
    """Return what a form must repeat, from the value of the cookie that it goes with."""
    return hashlib.sha256(f"form:{cookie}".encode()).hexdigest()


def read_form(request: Request, cookie: str) -> dict[str, str]:
    """Return the fields of a form that a page of this server has sent. `Denied`, `Invalid`."""
    fields = parse_fields(request)
    fields.pop(PAGE_FIELD, None)
    expected = form_token(cookie) if cookie else ""
    is_ours = hmac.compare_digest(fields.pop(FORM_FIELD, "").encode(), expected.encode()) and bool(expected)
    if not is_ours or not comes_from_us(request):
        raise Denied(
            "DENIED", "this form was not sent by a page of your session", next_step="open the page again and repeat it"
        )
    return fields


def parse_fields(request: Request) -> dict[str, str]:
    """Return the fields of a form, whoever has sent it. `Invalid`."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _FORM_TYPE:
        raise Invalid("REQUEST_INVALID", f"the body must be {_FORM_TYPE}")
    try:
        body: str = request.state.body.decode("ascii")
        pairs = parse_qsl(body, keep_blank_values=True, max_num_fields=FIELDS_LIMIT, errors="strict")
    except ValueError as e:
        raise Invalid("REQUEST_INVALID", "the form cannot be read") from e
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Invalid("REQUEST_INVALID", "the form has a field twice")
    return fields


def comes_from_us(request: Request) -> bool:
    """Whether the headers with which a browser says where a form comes from, if any, name this server."""
    site, origin = request.headers.get("sec-fetch-site", "same-origin"), request.headers.get("origin")
    hosts = {request.headers.get("host", ""), urlsplit(services_of(request).settings.public_url).netloc}
    return site == "same-origin" and (origin is None or _host_of(origin) in hosts - {""})


def _host_of(origin: str) -> str:
    """Return the host and port of an origin; empty for anything else, such as `http://[`."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def local_path(path: str) -> str:
    """Return the path if it is one of this server, else `/`.

    >>> local_path("/search?text=a"), local_path("//evil.example"), local_path("/\\\\evil.example")
    ('/search?text=a', '/', '/')
    """
    return path if len(path) <= NEXT_LIMIT and _LOCAL_PATH.match(path) else "/"
