"""A server on this machine that answers huggingface_hub as the hub does, for one model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def serving(directory: Path, hub_id: str, commit: str) -> Iterator[str]:
    """Serve the files of `directory` as the model `hub_id`; gives the endpoint."""
    files = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0]
            name = path.rsplit("/", 1)[-1]
            if path.startswith(f"/api/models/{hub_id}/revision"):
                siblings = [{"rfilename": file} for file in files]
                data, kind = json.dumps({"id": hub_id, "sha": commit, "siblings": siblings}).encode(), "json"
            elif path.startswith(f"/api/models/{hub_id}/tree"):
                tree = [{"type": "file", "path": f, "size": len(d), "oid": _hash(d)} for f, d in files.items()]
                data, kind = json.dumps(tree).encode(), "json"
            elif path.startswith(f"/{hub_id}/resolve/") and name in files:
                data, kind = files[name], "octet-stream"
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", f"application/{kind}")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{_hash(data)}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _hash(data: bytes) -> str:
    return sha256(data).hexdigest()
