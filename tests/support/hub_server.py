"""A server on this machine that answers huggingface_hub as the hub does: downloads, accounts, uploads by git-lfs."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

WRITER, READER = "hf_writer", "hf_reader"
_LFS = (".safetensors", ".bin")


@dataclass
class Repo:
    """Attributes: branches, name -> commit; commits, hash -> files; log, every commit's message."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str, commit: str | None = None) -> str:
        commit = commit or sha1(f"{branch} {len(self.log)} {message}".encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        self.log.append(message)
        return commit

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class Hub:
    """Attributes: repos, by id; requests, "METHOD path" of each; broken, path's part -> status that is answered."""

    endpoint: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)

    def add(self, hub_id: str, directory: Path, commit: str | None = None, **more: Any) -> Repo:
        files = {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
        repo = self.repos.setdefault(hub_id, Repo(**more))
        repo.commit("main", files, "first", commit)
        return repo

    def asked(self, method: str, part: str) -> list[str]:
        return [request for request in self.requests if request.startswith(method) and part in request]


@contextmanager
def hub() -> Iterator[Hub]:
    """An empty hub."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._handle("HEAD")

        def do_GET(self) -> None:
            self._handle("GET")

        def do_POST(self) -> None:
            self._handle("POST")

        def do_PUT(self) -> None:
            self._handle("PUT")

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _handle(self, method: str) -> None:
            self.method, self.parts = method, [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = "/".join(self.parts)
            state.requests.append(f"{method} {path}")
            self.role = {f"Bearer {WRITER}": "write", f"Bearer {READER}": "read"}.get(self.headers["Authorization"])
            for part, status in state.broken.items():
                if part in f"{method} {path}":
                    self._error(status, "", "It is out of order.")
                    return
            if self.headers["Authorization"] and self.role is None:
                self._error(401, "", "Invalid credentials in Authorization header")
            elif path == "api/whoami-v2":
                self._json({"name": "someone", "auth": {"accessToken": {"role": self.role}}})
            elif path == "api/validate-yaml":
                self._json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
            elif path == "api/repos/create":
                self._create(json.loads(self.body))
            elif path.startswith("lfs/"):
                state.blobs[self.parts[1]] = self.body
                self._json({})
            else:
                self._of_repo()

        def _of_repo(self) -> None:
            api = self.parts[:2] == ["api", "models"]
            owner, name, *rest = (self.parts[2:] if api else self.parts) + ["", ""]
            rest = rest[:-2]
            hub_id = f"{owner}/{name.removesuffix('.git')}"
            repo = state.repos.get(hub_id)
            if repo is None or (repo.private and self.role is None):
                self._error(404 if self.role else 401, "RepoNotFound", "Repository not found")
            elif api and rest[:1] in ([], ["revision"], ["tree"]):
                self._list(hub_id, repo, rest[1] if rest else "main", rest[:1] == ["tree"])
            elif rest[:1] == ["resolve"]:
                self._file(repo, rest[1], "/".join(rest[2:]))
            elif self.role != "write":
                self._error(403, "", "You are not allowed to write to it")
            elif rest[:1] == ["branch"]:
                repo.branches[rest[1]] = repo.branches["main"]
                self._json({})
            elif rest[:1] == ["preupload"]:
                self._preupload(repo, rest[1], json.loads(self.body)["files"])
            elif rest[-2:] == ["objects", "batch"]:
                self._batch(json.loads(self.body)["objects"])
            elif rest[:1] == ["commit"]:
                self._commit(hub_id, repo, rest[1], [json.loads(line) for line in self.body.splitlines()])
            else:
                self._error(404, "", "There is nothing")

        def _create(self, words: dict[str, Any]) -> None:
            hub_id = f"{words['organization']}/{words['name']}"
            if self.role != "write" or words["organization"] != "someone":
                self._error(403, "", "You are not allowed to make a model there")
            elif hub_id in state.repos:
                self._error(409, "", "You already created this model repo")
            else:
                # "visibility" since huggingface_hub 1.0; without either a model is public
                private = words.get("private", words.get("visibility", "public") == "private")
                state.repos[hub_id] = Repo(private=private)
                state.repos[hub_id].commit("main", {".gitattributes": b""}, "initial commit")
                self._json({"url": f"{state.endpoint}/{hub_id}"})

        def _list(self, hub_id: str, repo: Repo, revision: str, tree: bool) -> None:
            commit = repo.branches.get(revision, revision)
            if commit not in repo.commits:
                self._error(404, "RevisionNotFound", "Invalid rev id")
                return
            files = repo.commits[commit]
            if tree:
                self._json([_entry(path, data) for path, data in files.items()])
                return
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": hub_id, "sha": commit, "private": repo.private, "siblings": siblings})

        def _file(self, repo: Repo, revision: str, path: str) -> None:
            commit = repo.branches.get(revision, revision)
            if repo.gated and self.role is None:
                self._error(401, "GatedRepo", "Access to this model is restricted")
            elif commit not in repo.commits:
                self._error(404, "RevisionNotFound", "Invalid rev id")
            elif path not in repo.commits[commit]:
                self._error(404, "EntryNotFound", "Entry not found")
            else:
                data = repo.commits[commit][path]
                tag = {"ETag": f'"{sha256(data).hexdigest()}"', "X-Repo-Commit": commit}
                self._send(200, data, "application/octet-stream", tag)

        def _preupload(self, repo: Repo, revision: str, files: list[dict[str, Any]]) -> None:
            present = repo.files(revision)
            found = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(_LFS) else "regular",
                    "shouldIgnore": False,
                    "oid": _oid(file["path"], present[file["path"]]) if file["path"] in present else None,
                }
                for file in files
            ]
            self._json({"files": found})

        def _batch(self, objects: list[dict[str, Any]]) -> None:
            found = [
                {**one, "actions": {"upload": {"href": f"{state.endpoint}/lfs/{one['oid']}"}}}
                if one["oid"] not in state.blobs
                else one
                for one in objects
            ]
            self._json({"transfer": "basic", "objects": found})

        def _commit(self, hub_id: str, repo: Repo, branch: str, lines: list[dict[str, Any]]) -> None:
            files = dict(repo.files(branch))
            message = ""
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    message = value["summary"]
                    if value.get("parentCommit") not in (None, repo.branches[branch]):
                        self._error(412, "", "A commit has happened since")
                        return
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = state.blobs[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            commit = repo.commit(branch, files, message)
            self._json({"commitUrl": f"{state.endpoint}/{hub_id}/commit/{commit}", "commitOid": commit})

        def _error(self, status: int, code: str, message: str) -> None:
            self._send(status, b"", "text/plain", {"X-Error-Code": code, "X-Error-Message": message})

        def _json(self, content: Any) -> None:
            self._send(200, json.dumps(content).encode(), "application/json", {})

        def _send(self, status: int, data: bytes, kind: str, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.method != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """A file of a listing."""
    return {"type": "file", "path": path, "size": len(data), "oid": _oid("", data)}


def _oid(path: str, data: bytes) -> str:
    """git's hash of a file, or git-lfs's."""
    return (sha256(data) if path.endswith(_LFS) else sha1(b"blob %d\0" % len(data) + data)).hexdigest()


@contextmanager
def serving(directory: Path, hub_id: str, commit: str) -> Iterator[str]:
    """Serve the files of `directory` as the model `hub_id`; gives the endpoint."""
    with hub() as found:
        found.add(hub_id, directory, commit)
        yield found.endpoint


def connect(found: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path, token: str | None = None) -> None:
    """Make this hub the one that huggingface_hub asks in this process, with a cache and an account of its own."""
    constants = "huggingface_hub.constants."
    monkeypatch.setattr(constants + "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants + "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants + "ENDPOINT", found.endpoint)
    template = found.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for module in ("constants", "file_download"):  # before 1.0 the latter had imported it
        monkeypatch.setattr(f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants + "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants + "HF_TOKEN_PATH", str(cache / "no-token"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
