"""A small Hub on this machine: one data set at one commit, as far as huggingface_hub asks for it."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves `files` (path: content) as data set `name`; gated and absent data sets are called gated/set, no/set."""

    daemon_threads = True

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.files = files
        self.requests: list[str] = []
        self.failing = 0  # so many requests for parts of files are answered by an error 500
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

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
        name = self.server.name
        if "/gated/set/" in f"{path}/":
            self._error(403, "GatedRepo")
        elif f"/{name}/" not in f"{path}/":
            self._error(404, "RepoNotFound")
        elif match := re.fullmatch(rf"/api/datasets/{name}(?:/revision/(.+))?", path):
            self._revision(match[1] or "main")
        elif match := re.fullmatch(rf"/api/datasets/{name}/tree/([^/]+)(?:/(.+))?", path):
            self._tree(match[1], match[2] or "")
        elif match := re.fullmatch(rf"/datasets/{name}/resolve/([^/]+)/(.+)", path):
            self._file(match[2])
        else:
            self._error(404, "EntryNotFound")

    def _revision(self, revision: str) -> None:
        if revision in ("main", "v1", COMMIT):
            self._json({"id": self.server.name, "sha": COMMIT, "siblings": [], "tags": [], "private": False})
        else:
            self._error(404, "RevisionNotFound")

    def _tree(self, revision: str, folder: str) -> None:
        if revision == COMMIT:
            files = self.server.files.items()
            self._json([_entry(path, content) for path, content in files if path.startswith(folder)])
        else:
            self._error(404, "RevisionNotFound")

    def _file(self, path: str) -> None:
        content = self.server.files.get(path)
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
