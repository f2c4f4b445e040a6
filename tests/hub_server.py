"""A local server with the part of the Hub's protocol that models use."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Self

UPLOAD = re.compile(
    r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>preupload|commit)/(?P<revision>.+)"
)
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Repo:
    """A repository: the files of each commit, and the branches and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    token: str | None = None

    def commit(self, files: dict[str, bytes], *refs: str) -> str:
        """Add a commit, and point `main` and `refs` to it."""
        name = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[name] = files
        self.refs |= dict.fromkeys(("main", *refs), name)
        return name


class HubServer(ThreadingHTTPServer):
    """The server. Use it as a context manager."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        """Uploaded large files, by their sha256."""
        self.messages: list[str] = []
        """Messages of all commits."""
        self.user = "someone"
        self.log: list[tuple[str, str, int, int]] = []
        """Method, path, status and number of body bytes of each answer."""
        self.failures: list[int] = []
        """Error statuses of the next answers, in order."""
        self.cut_after: list[int] = []
        """Numbers of bytes after which the next bodies are cut off, in order."""

    @property
    def url(self) -> str:
        """Address of the server, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def bodies(self, file: str) -> list[int]:
        """List the number of bytes of each answer to a request for a file."""
        return [sent for method, path, _, sent in self.log if method == "GET" and file in path]


class Handler(BaseHTTPRequestHandler):
    """Answers HEAD and GET of …/resolve/…, and the requests of an upload."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Send the metadata of a file."""
        self._answer(with_body=False)

    def do_GET(self) -> None:
        """Send a file, or the part of it that the Range header names."""
        self._answer(with_body=True)

    def do_POST(self) -> None:
        """Do one step of an upload."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_write":
            self._refuse(401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or self.server.user}/{asked['name']}"
            self.server.repos.setdefault(repo, Repo())
            self._answer_json({"url": f"{self.server.url}/{repo}"})
        elif self.path == "/api/validate-yaml":
            self._answer_json({"errors": [], "warnings": []})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self._answer_json({"objects": [self._ticket(x) for x in json.loads(body)["objects"]]})
        elif match := UPLOAD.fullmatch(self.path):
            if match["what"] == "preupload":
                self._answer_json({"files": [_mode(x) for x in json.loads(body)["files"]]})
            else:
                self._commit(match["repo"], match["revision"], body)
        else:
            self._refuse(404)

    def do_PUT(self) -> None:
        """Store a large file."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name = self.path.removeprefix("/objects/")
        if hashlib.sha256(content).hexdigest() != name:
            self._refuse(400)
            return
        self.server.objects[name] = content
        self._answer_json({})

    def _ticket(self, asked: dict) -> dict:
        upload = {"href": f"{self.server.url}/objects/{asked['oid']}"}
        return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": upload}}

    def _commit(self, repo: str, revision: str, body: bytes) -> None:
        files: dict[str, bytes] = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.objects[value["oid"]]
        name = self.server.repos[repo].commit(files, revision)
        url = f"{self.server.url}/{repo}/commit/{name}"
        self._answer_json({"commitUrl": url, "commitOid": name})

    def _answer_json(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self._note(200, len(body))

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _answer(self, *, with_body: bool) -> None:
        if self.server.failures:
            self._refuse(self.server.failures.pop(0))
            return
        match = RESOLVE.fullmatch(self.path)
        if match is None:
            self._refuse(404)
            return
        repo = self.server.repos.get(match["repo"])
        allowed = repo is not None and (
            repo.token is None or self.headers.get("Authorization") == f"Bearer {repo.token}"
        )
        if repo is None or (not allowed and not repo.gated):
            self._refuse(401, "RepoNotFound")  # like the Hub: private and missing look the same
            return
        if not allowed:
            self._refuse(401, "GatedRepo")
            return
        commit = repo.refs.get(match["revision"], match["revision"])
        if commit not in repo.commits:
            self._refuse(404, "RevisionNotFound")
            return
        content = repo.commits[commit].get(match["file"])
        if content is None:
            self._refuse(404, "EntryNotFound", commit)
            return
        self._send(content, commit, with_body=with_body)

    def _send(self, content: bytes, commit: str, *, with_body: bool) -> None:
        start = 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
        part = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if with_body and self.server.cut_after:
            part = part[: self.server.cut_after.pop(0)]
            self.close_connection = True
        if with_body:
            self.wfile.write(part)
        self._note(206 if start else 200, len(part) if with_body else 0)

    def _refuse(self, status: int, code: str = "", commit: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self._note(status, 0)

    def _note(self, status: int, sent: int) -> None:
        self.server.log.append((self.command, self.path, status, sent))


def _mode(asked: dict) -> dict:
    mode = "lfs" if asked["path"].endswith(".safetensors") else "regular"
    return {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
