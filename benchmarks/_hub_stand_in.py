"""A server that accepts what a Hub client pushes by Xet, and only hashes and stores it: the floor of `hub_push`.

python -m benchmarks._hub_stand_in PORT FOLDER
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHUNK_BYTES = 2**20


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        url = f"http://{self.headers['Host']}"
        if "/xet-write-token/" in self.path:
            self.respond(
                200, {"casUrl": f"{url}/{secrets.token_hex(6)}", "accessToken": "x", "exp": int(time.time()) + 900}
            )
        else:
            self.respond(404, {})

    def do_POST(self) -> None:
        if "/v1/xorbs/" in self.path or self.path.endswith("/v1/shards"):
            self.store()
            self.respond(200, {"was_inserted": True, "result": 1})
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = f"http://{self.headers['Host']}/acme/support"
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": mode(f), "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.respond(200, {"files": files})
        elif self.path == "/api/repos/create":
            self.respond(200, {"url": url})
        elif "/commit/" in self.path:
            commit = "0" * 40
            self.respond(
                200, {"success": True, "commitOid": commit, "commitUrl": f"{url}/commit/{commit}", "hookOutput": ""}
            )
        elif self.path == "/api/validate-yaml":
            self.respond(200, {"errors": [], "warnings": []})
        else:
            self.respond(404, {})

    def store(self) -> None:
        """Write the body to a file and hash it on its way."""
        hasher, missing = hashlib.sha256(), int(self.headers["Content-Length"])
        with open(FOLDER / secrets.token_hex(8), "wb") as file:
            while missing:
                chunk = self.rfile.read(min(CHUNK_BYTES, missing))
                hasher.update(chunk)
                file.write(chunk)
                missing -= len(chunk)

    def respond(self, status: int, fields: dict[str, Any]) -> None:
        body = json.dumps(fields).encode()
        self.send_response(status)
        if "casUrl" in fields:
            self.send_header("X-Xet-Cas-Url", fields["casUrl"])
            self.send_header("X-Xet-Access-Token", fields["accessToken"])
            self.send_header("X-Xet-Token-Expiration", str(fields["exp"]))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def mode(file: dict[str, Any]) -> str:
    return "lfs" if file["path"].endswith(".safetensors") else "regular"


if __name__ == "__main__":
    FOLDER = Path(sys.argv[2])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
