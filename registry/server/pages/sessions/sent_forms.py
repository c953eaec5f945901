"""Forms that come back: after an error, or after signing in again, filled in as they were sent.

- The page that sent a form is requested again, and the form in its HTML filled in. No page and no form has code of its
  own for it. Templates escape every text, so what looks like a form there is one.
- Only what a person typed or chose is filled in. Secrets and hidden fields, such as the generation of an alias, are
  those of the new page. A form whose other hidden fields differ is another one.
- Where a session has ended, the form waits in a cookie that scripts cannot read, without secrets, signed, for
  `WAIT_SECONDS`. It fills the page that sent it, and sends nothing.
"""

import base64
import binascii
import hmac
import html
import json
import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from fastapi import Request
from markupsafe import Markup, escape

from registry.errors import RegistryError
from registry.server.http.services import services_of
from registry.server.pages.sessions import visitors
from registry.server.pages.sessions.visitors import FORM_FIELD, PAGE_FIELD

WAITING_FORM = "adapter-waiting-form"
"""The cookie of a form that waits for its person to sign in."""
WAIT_SECONDS = 900
COOKIE_BYTES = 2000
"""Proxies refuse long headers, so a longer form is lost with its session."""
_RENEWED = {FORM_FIELD, PAGE_FIELD, "once", "generation"}
"""Hidden fields that the new page has with values of its own."""
_NOT_KEPT = {FORM_FIELD, PAGE_FIELD, "once", "token"}
_FORM = re.compile(r'<form method="post" action="([^"]*)"[^>]*>.*?</form>', re.DOTALL)
_CONTROL = re.compile(r"<input\b[^>]*>|<(textarea|select)\b[^>]*>.*?</\1>", re.DOTALL)
_ATTRIBUTE = re.compile(r'([a-z-]+)(?:="([^"]*)")?')
_DETAILS = re.compile(r"<details\b[^>]*>|</details>")
_PROBLEM = Markup('<{tag} class="{kind}" id="form-problem" role="alert">{text}</{tag}>')


@dataclass(frozen=True, slots=True)
class SentForm:
    """A form that was not accepted. `page`: the path of the page with it."""

    action: str
    page: str
    fields: Mapping[str, str] = field(repr=False)


def read_sent(request: Request) -> SentForm | None:
    """The form of a request that has failed; None if the browser does not say that a page of this server sent it."""
    if not {"origin", "sec-fetch-site"}.intersection(request.headers) or not visitors.comes_from_us(request):
        return None
    try:
        fields = visitors.parse_fields(request)
    except RegistryError:
        return None
    path = getattr(request.state, "page_of_form", "") or fields.get(PAGE_FIELD) or page_of_form(request)
    page = visitors.local_path(path) if path else ""
    return SentForm(request.url.path, page, fields) if page else None


def page_of_form(request: Request) -> str:
    """The page from which a form was sent; empty for other requests, or if the browser does not say."""
    try:
        parts = urlsplit(request.headers.get("referer", "") if request.method == "POST" else "")
    except ValueError:
        return ""
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return visitors.local_path(path) if parts.netloc and parts.netloc == request.headers.get("host") else ""


# ------------------------------------------------------------------ in the page
def fill_in(
    page: str, form: SentForm, problem: Markup, wrong_field: str = "", *, button: str = "", kind: str = "fail"
) -> str:
    """Return the page with the form filled in, and the problem at its field, in the form, or at the top of the page.

    `button`: what is added to the text of its button. `kind`: how the problem looks.
    """
    hidden_page = f'<input type="hidden" name="{PAGE_FIELD}" value="{escape(form.page)}">'
    form_match = next((match for match in _FORM.finditer(page) if _is_same(match, form)), None)
    notice = str(_PROBLEM.format(tag="div", kind=f"notice {kind}", text=problem))
    if form_match is None:
        return re.sub(r"<main\b[^>]*>", lambda match: match[0] + notice, page, count=1)
    controls = [_attributes(match[0]) for match in _CONTROL.finditer(form_match[0])]
    is_at_field = any(control.get("name") == wrong_field and _is_typed(control) for control in controls)

    def fill(match: re.Match[str]) -> str:
        control = _attributes(match[0])
        filled = _fill(match[0], control, form.fields)
        if not is_at_field or control.get("name") != wrong_field:
            return filled
        marked = filled.replace(" ", ' aria-invalid="true" aria-describedby="form-problem" autofocus ', 1)
        return marked + str(_PROBLEM.format(tag="span", kind="problem", text=problem))

    text = _CONTROL.sub(fill, form_match[0])
    start = text.index(">") + 1
    text = text[:start] + ("" if is_at_field else notice) + text[start:]
    if button:
        text = text.replace("</button>", f" {escape(button)}</button>", 1)
    filled = _open_folds(page[: form_match.start()]) + text + page[form_match.end() :]
    return re.sub(r'<form method="post"[^>]*>', lambda match: match[0] + hidden_page, filled)


def _attributes(control: str) -> dict[str, str]:
    return {name: html.unescape(value) for name, value in _ATTRIBUTE.findall(control[: control.index(">")])}


def _is_typed(control: Mapping[str, str]) -> bool:
    return control.get("type") != "hidden"


def _is_same(match: re.Match[str], form: SentForm) -> bool:
    """Whether this is the form: all that was sent has a control, and what a page set is the same."""
    if html.unescape(match[1]) != form.action:
        return False
    controls = {control.get("name"): control for control in map(_attributes, _control_texts(match[0]))}
    for name, value in form.fields.items():
        if name in _RENEWED:
            continue
        if name not in controls or not (_is_typed(controls[name]) or controls[name].get("value") == value):
            return False
    return True


def _control_texts(form: str) -> list[str]:
    return [match[0] for match in _CONTROL.finditer(form)]


def _fill(text: str, control: Mapping[str, str], fields: Mapping[str, str]) -> str:
    name, kind = control.get("name", ""), control.get("type", "")
    value = escape(fields.get(name, ""))
    if kind == "checkbox":
        text = text.replace(" checked", "")
        return text.replace("<input", "<input checked", 1) if name in fields else text
    if kind in ("hidden", "password") or name not in fields:
        return text
    start = text.index(">") + 1
    if text.startswith("<textarea"):
        return f"{text[:start]}{value}</textarea>"
    if text.startswith("<select"):
        options = text.replace(" selected>", ">")
        return re.sub(
            r'<option(?: value="([^"]*)")?>([^<]*)',
            lambda option: (
                option[0].replace("<option", "<option selected", 1)
                if (option[1] if option[1] is not None else option[2]) == value
                else option[0]
            ),
            options,
        )
    return re.sub(r' value="[^"]*"', "", text).replace("<input", f'<input value="{value}"', 1)


def _open_folds(before: str) -> str:
    """The HTML before a form with those `details` open that hold the form."""
    folds: list[int] = []
    for match in _DETAILS.finditer(before):
        if match[0] == "</details>":
            folds.pop()
        else:
            folds.append(match.start())
    for start in reversed(folds):
        before = before[:start] + before[start:].replace(" open>", ">", 1).replace("<details", "<details open", 1)
    return before


# ------------------------------------------------------------------ while a person signs in
def pack(request: Request, form: SentForm) -> str:
    """The value of the cookie in which the form waits; empty for one that is too long."""
    fields = {name: value for name, value in form.fields.items() if name not in _NOT_KEPT}
    content = json.dumps([int(time.time()) + WAIT_SECONDS, form.action, form.page, fields])
    text = base64.urlsafe_b64encode(zlib.compress(content.encode())).decode()
    return f"{text}.{_sign(request, text)}" if len(text) <= COOKIE_BYTES else ""


def find_kept(request: Request, page: str) -> SentForm | None:
    """The form that waits for this page."""
    text, _, signature = visitors.read_cookie(request, WAITING_FORM, 2 * COOKIE_BYTES).partition(".")
    if not text or not hmac.compare_digest(signature.encode(), _sign(request, text).encode()):
        return None
    try:
        until, action, sent_from, fields = json.loads(zlib.decompress(base64.urlsafe_b64decode(text)))
    except (ValueError, binascii.Error, zlib.error):  # of another release
        return None
    return SentForm(action, sent_from, fields) if time.time() < until and sent_from == page else None


def _sign(request: Request, text: str) -> str:
    return services_of(request).link_signer.sign_text("form", text)
