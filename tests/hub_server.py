"""The Hub on this machine: what huggingface_hub asks for to upload and download.

A repository is a list of commits per branch; a commit maps paths to contents. Weights
and audio are "large files" as on the Hub: they are uploaded by their hash before the
commit that names them, and downloaded from another address, to which a request is
redirected.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".ckpt", ".bin", ".flac", ".png")
TOKEN = "hub-test-token"


def blob_id(content: bytes) -> str:
    """How git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    """How the Hub names a large file."""
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repository:
    """Commits, oldest first, of each branch."""

    private: bool = False
    branches: dict[str, list[str]] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Adds a commit; returns its name."""
        history = self.branches.setdefault(branch, [])
        seed = f"{branch} {len(history)} {sorted(files)}"
        name = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[name] = files
        history.append(name)
        return name

    def find(self, revision: str) -> str | None:
        """The commit that a branch or a commit's name stands for."""
        if revision in self.branches:
            return self.branches[revision][-1]
        return revision if revision in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds."""
        return self.commits[self.find(revision)]


@dataclass
class Hub:
    """Repositories, stored large files, what was asked for, and faults to inject.

    ``faults`` maps a pattern for "METHOD /path" to a status or to a word. "cut": the
    connection ends in the middle of the body. "slow": a byte a second. "endless": of
    any length. "wait": 429 with a wait of 100,000 s. "continue": nothing but 100.
    "mute": nothing. A fault holds until it is taken out.
    """

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    faults: dict[str, int | str] = field(default_factory=dict)
    closed: bool = False

    def requests(self, pattern: str) -> list[str]:
        """The requests so far that match a pattern."""
        return [line for line in self.asked if re.search(pattern, line)]


@contextmanager
def serve() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.closed = True
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request; the first route that fits answers it."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", "info"),
        ("POST", r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", "branch"),
        ("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", "commit"),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/large/([0-9a-f]{64})", "store"),
        ("GET", r"/large/([0-9a-f]{64})", "large"),
        ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    )

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        line = f"{self.command} {url.path}"
        self.hub.asked.append(line)
        fault = next((f for p, f in self.hub.faults.items() if re.search(p, line)), 0)
        size = int(self.headers.get("Content-Length") or 0)
        if fault == "cut" and self.command in ("POST", "PUT"):
            self.rfile.read(size // 2)
            return self.hang_up()
        self.cut = fault == "cut"
        self.body = self.read_chunks() if self.is_chunked() else self.rfile.read(size)
        self.slow = fault == "slow"
        if fault == "wait":
            return self.reply(429, {}, {"Retry-After": "100000"})
        if fault in ("continue", "mute", "endless"):
            with suppress(OSError):
                self.trouble(fault)
            return None
        if isinstance(fault, int) and fault:
            return self.reply(fault, {"error": "injected"})
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and wanted == method:
                groups = [unquote(g) if g else g for g in match.groups()]
                return getattr(self, name)(*groups)
        self.reply(404, {"error": "no such address"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def is_chunked(self) -> bool:
        return self.headers.get("Transfer-Encoding") == "chunked"

    def read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def reply(self, status: int, body: object = b"", headers: dict | None = None):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut:
            self.wfile.write(content[: len(content) // 2])
            return self.hang_up()
        with suppress(OSError):
            for i in range(len(content) if self.slow else 0):
                self.wfile.write(content[i : i + 1])
                time.sleep(1)
            self.wfile.write(b"" if self.slow else content)

    def trouble(self, kind: str) -> None:
        """Sends what never ends, or nothing, until the client has gone."""
        self.close_connection = True
        if kind == "endless":
            self.send_response(200)
            self.send_header("ETag", '"endless"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
        while not self.hub.closed:
            if kind == "mute":
                time.sleep(0.05)
            else:
                part = bytes(2**16) if kind == "endless" else self.CONTINUE
                self.wfile.write(part)

    def log_message(self, *args) -> None:
        """Not on the tests' stderr."""

    def may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name: str) -> Repository | None:
        """An existing repository that the client may see; else answers."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self.may_write()):
            status = 404 if self.may_write() else 401
            self.reply(status, {}, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def create(self) -> None:
        if not self.may_write():
            return self.reply(401, {"error": "Invalid username or password."})
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.hub.address}/{name}"}
        if wanted["organization"] != "user":
            return self.reply(403, {"error": "no rights in this namespace"})
        if name in self.hub.repositories:
            return self.reply(409, url)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        repository = Repository(private=private)
        repository.commit("main", {".gitattributes": b"*.ckpt filter=lfs\n"})
        self.hub.repositories[name] = repository
        self.reply(200, url)

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        if not content.startswith("---\n"):
            errors = [{"message": "no metadata"}]
            return self.reply(400, {"errors": errors, "warnings": []})
        self.reply(200, {"errors": [], "warnings": []})

    def info(self, name: str, revision: str | None) -> None:
        repository = self.repository(name)
        if repository is None:
            return
        commit = repository.find(revision or "main")
        if commit is None:
            return self.reply(404, {}, {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for path, content in repository.commits[commit].items():
            entry = {"rfilename": path}
            if "blobs" in self.query:
                entry |= {"blobId": blob_id(content), "size": len(content)}
                if path.endswith(LARGE):
                    entry["lfs"] = {
                        "sha256": sha256(content),
                        "size": len(content),
                        "pointerSize": 134,
                    }
            siblings.append(entry)
        self.reply(
            200,
            {
                "id": name,
                "sha": commit,
                "private": repository.private,
                "siblings": siblings,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            },
        )

    def branch(self, name: str, branch: str) -> None:
        repository = self.hub.repositories[name]
        if branch in repository.branches:
            return self.reply(409, {"error": "exists"})
        repository.branches[branch] = list(repository.branches["main"])
        self.reply(200, {})

    def preupload(self, name: str, revision: str) -> None:
        repository = self.repository(name)
        if repository is None:
            return
        if revision not in repository.branches:
            return self.reply(404, {}, {"X-Error-Code": "RevisionNotFound"})
        present = repository.files(revision)
        answer = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            large = path.endswith(LARGE)
            entry = {"path": path, "uploadMode": "lfs" if large else "regular"}
            entry["shouldIgnore"] = False
            if path in present:
                entry["oid"] = (sha256 if large else blob_id)(present[path])
            answer.append(entry)
        self.reply(200, {"files": answer})

    def batch(self, name: str) -> None:
        if not self.may_write():
            return self.reply(403, {"error": "read only"})
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large:
                href = f"{self.hub.address}/large/{wanted['oid']}"
                entry["actions"] = {"upload": {"href": href}}
            objects.append(entry)
        self.reply(200, {"transfer": "basic", "objects": objects})

    def store(self, name: str) -> None:
        if sha256(self.body) != name:
            return self.reply(400, {"error": "wrong hash"})
        self.hub.large[name] = self.body
        self.reply(200)

    def commit(self, name: str, revision: str) -> None:
        if not self.may_write():
            return self.reply(403, {"error": "read only"})
        repository = self.repository(name)
        files = dict(repository.files(revision))
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        commit = repository.commit(revision, files)
        url = f"{self.hub.address}/{name}/commit/{commit}"
        self.reply(200, {"commitUrl": url, "commitOid": commit, "success": True})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.repository(name)
        if repository is None:
            return
        commit = repository.find(revision)
        if commit is None:
            return self.reply(404, {}, {"X-Error-Code": "RevisionNotFound"})
        headers = {"X-Repo-Commit": commit}
        if path not in repository.commits[commit]:
            headers["X-Error-Code"] = "EntryNotFound"
            return self.reply(404, {}, headers)
        content = repository.commits[commit][path]
        if not path.endswith(LARGE):
            headers["ETag"] = f'"{blob_id(content)}"'
            return self.reply(200, content, headers)
        digest = sha256(content)
        self.hub.large[digest] = content
        # To another host, as on the Hub: the client stops there to read the headers.
        storage = self.hub.address.replace("127.0.0.1", "localhost")
        headers["Location"] = f"{storage}/large/{digest}"
        headers["X-Linked-Etag"] = f'"{digest}"'
        headers["X-Linked-Size"] = str(len(content))
        self.reply(302, b"", headers)

    def large(self, name: str) -> None:
        content = self.hub.large[name]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self.reply(200, content, {"ETag": f'"{name}"'})
        start = int(wanted[1])
        range_ = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.reply(206, content[start:], {"Content-Range": range_})
