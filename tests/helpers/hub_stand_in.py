"""A small stand-in for the HTTP interface of the Hugging Face Hub, on this machine.

Knows what huggingface_hub asks for when it makes a repository, commits files and downloads them:
files are committed in the body of the request, as the Hub has it for small ones. Large files, which
the Hub takes by Git LFS or Xet, are not imitated.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        repositories: name to revision to path to bytes.
        tokens: the authorization of every request.
        asked: method and path of every request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.tokens: list[str | None] = []
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def _commit(files: dict[str, bytes]) -> str:
    text = "".join(f"{name}{_etag(data)}" for name, data in sorted(files.items()))
    return hashlib.sha1(text.encode()).hexdigest()


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _start(self) -> list[str]:
        self.server.asked.append(f"{self.command} {self.path}")
        self.server.tokens.append(self.headers.get("Authorization"))
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def _send(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def _missing(self, code: str) -> None:
        self._send(404, b"{}", X_Error_Code=code, X_Error_Message="not here")

    def do_POST(self) -> None:
        body, repositories = self._body(), self.server.repositories
        match self._start():
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                repositories.setdefault(name, {"main": {}})
                self._json({"url": f"{self.server.url}/{name}", "name": name, "id": "1"})
            case ["api", "models", owner, name, "branch", branch]:
                branches = repositories[f"{owner}/{name}"]
                branches.setdefault(branch, dict(branches["main"]))
                self._json({})
            case ["api", "models", _, _, "preupload", _]:
                files = json.loads(body)["files"]
                self._json(
                    {
                        "files": [
                            {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                            for f in files
                        ]
                    }
                )
            case ["api", "models", owner, name, "commit", branch]:
                files = repositories[f"{owner}/{name}"][branch]
                for line in body.decode().splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        value = entry["value"]
                        files[value["path"]] = base64.b64decode(value["content"])
                url = f"{self.server.url}/{owner}/{name}/commit/{_commit(files)}"
                self._json({"commitUrl": url, "commitOid": _commit(files), "success": True})
            case ["api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            case _:
                self._missing("RepoNotFound")

    def do_GET(self) -> None:
        repositories = self.server.repositories
        match self._start():
            case ["api", "models", owner, name, "revision", branch] if (
                f"{owner}/{name}" in repositories
            ):
                files = self._files(f"{owner}/{name}", branch)
                if files is None:
                    self._missing("RevisionNotFound")
                    return
                names = [{"rfilename": path} for path in files]
                found = {"id": f"{owner}/{name}", "sha": _commit(files), "siblings": names}
                self._json(found)
            case [owner, name, "resolve", branch, *path] if f"{owner}/{name}" in repositories:
                files = self._files(f"{owner}/{name}", branch)
                data = None if files is None else files.get("/".join(path))
                if files is None or data is None:
                    code = "RevisionNotFound" if files is None else "EntryNotFound"
                    self._missing(code)
                    return
                etag, commit = f'"{_etag(data)}"', _commit(files)
                self._send(200, data, ETag=etag, X_Repo_Commit=commit)
            case _:
                self._missing("RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _files(self, name: str, revision: str) -> dict[str, bytes] | None:
        branches = self.server.repositories[name]
        by_commit = {_commit(files): files for files in branches.values()}
        return branches.get(revision, by_commit.get(revision))


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve an empty Hub while the block runs."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
