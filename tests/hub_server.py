"""A small Hub on this machine: data sets and models at one commit, as far as huggingface_hub asks for them."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)


class HubServer(ThreadingHTTPServer):
    """Serves `files` (path: content) as data set `name`, and what is added; gated/set is gated, all else absent."""

    daemon_threads = True

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.repositories = {f"datasets/{name}": files}
        self.requests: list[str] = []
        self.failing = 0  # so many requests for parts of files are answered by an error 500
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add_data(self, name: str, files: dict[str, bytes]) -> None:
        self.repositories[f"datasets/{name}"] = files

    def add_model(self, name: str, folder: Path) -> None:
        """Serves the files of a folder as model `name`."""
        self.repositories[f"models/{name}"] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *arguments: object) -> None:
        """Said by `requests`."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if "/gated/set/" in f"{path}/":
            self._error(403, "GatedRepo")
        elif match := re.fullmatch(
            r"/api/((?:datasets|models)/[^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.+))?)?", path
        ):
            self._repository(match[1], match[2], match[3] or "main", match[4] or "")
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(f"{match[1] or 'models/'}{match[2]}", match[3], match[4])
        else:
            self._error(404, "RepoNotFound")

    def _repository(self, name: str, asked: str | None, revision: str, folder: str) -> None:
        files = self.server.repositories.get(name)
        if files is None:
            self._error(404, "RepoNotFound")
        elif revision not in REVISIONS:
            self._error(404, "RevisionNotFound")
        elif asked == "tree":
            self._json([_entry(path, content) for path, content in files.items() if path.startswith(folder)])
        else:
            about = {"id": name.partition("/")[2], "sha": COMMIT, "siblings": [], "tags": [], "private": False}
            self._json(about)

    def _file(self, name: str, revision: str, path: str) -> None:
        if name not in self.server.repositories:
            self._error(404, "RepoNotFound")
            return
        if revision not in REVISIONS:
            self._error(404, "RevisionNotFound")
            return
        content = self.server.repositories[name].get(path)
        if content is None:
            self._error(404, "EntryNotFound")
            return
        if "Range" in self.headers and self.server.failing > 0:
            self.server.failing -= 1
            self._error(500, "Failing")
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        part = content[int(match[1]) : int(match[2] or len(content)) + 1] if match else content
        headers = {"ETag": f'"{_sha(content)}"', "X-Repo-Commit": COMMIT}
        if match:
            headers["Content-Range"] = f"bytes {match[1]}-{int(match[1]) + len(part) - 1}/{len(content)}"
        self._answer(206 if match else 200, part, headers)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str) -> None:
        self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _sha(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(content), "oid": _sha(content)}
