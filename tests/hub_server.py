"""A server on this machine that answers for datasets as the hub does: their files, and commits to them."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2026-11-27T12:00:00.000Z"


class HubServer(ThreadingHTTPServer):
    """Repositories of datasets by name, each a dictionary of files; `ranges` counts answers with a part of a file."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), DatasetHandler)
        self.repositories = repositories
        self.lock = Lock()
        self.unknown: list[str] = []
        self.num_ranges = self.num_commits = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_server(repositories: dict[str, dict[str, bytes]]) -> Iterator[HubServer]:
    server = HubServer(repositories)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class DatasetHandler(BaseHTTPRequestHandler):
    """Answers the requests that `huggingface_hub` and `datasets` make."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "datasets"] and "/".join(parts[2:4]) in self.server.repositories:
            files = self.server.repositories["/".join(parts[2:4])]
            if parts[4:5] == ["tree"]:
                self._answer_json(self._tree(files, "/".join(parts[6:])))
            else:
                self._answer_json(self._info("/".join(parts[2:4]), files))
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            self._answer_file(self.server.repositories.get("/".join(parts[1:3]), {}).get("/".join(parts[5:])))
        else:
            self.server.unknown.append(self.path)
            self._answer_json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = read_body(self)
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        files = self.server.repositories.get("/".join(parts[2:4]), {})
        if parts[4:5] == ["paths-info"]:
            values = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
            paths = values["paths"]
            self._answer_json([each for path in paths for each in self._entries(files, path)])
        elif parts[4:5] == ["preupload"]:
            paths = [each["path"] for each in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            self._answer_json({"files": modes})
        elif parts[4:5] == ["commit"]:
            with self.server.lock:
                self.server.num_commits += 1
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    elif line["key"] == "deletedFile":
                        del files[line["value"]["path"]]
            url = f"{self.server.address}/datasets/{'/'.join(parts[2:4])}/commit/{revision(files)}"
            self._answer_json({"commitUrl": url, "commitOid": revision(files), "success": True})
        else:
            self.server.unknown.append(self.path)
            self._answer_json({})

    def _info(self, name: str, files: dict[str, bytes]) -> dict[str, Any]:
        siblings = [{"rfilename": path} for path in sorted(files)]
        flags = {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        return (
            {"_id": "1", "id": name, "author": name.split("/")[0], "sha": revision(files)}
            | flags
            | {
                "lastModified": DATE,
                "createdAt": DATE,
                "siblings": siblings,
            }
        )

    def _tree(self, files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
        is_recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{folder}/" if folder else ""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(files):
            if path.startswith(prefix):
                parts = path[len(prefix) :].split("/")
                for number in range(1, len(parts) + 1) if is_recursive else (1,):
                    name = prefix + "/".join(parts[:number])
                    found.update((name, each) for each in self._entries(files, name))
        return list(found.values())

    def _entries(self, files: dict[str, bytes], path: str) -> list[dict[str, Any]]:
        path = path.strip("/")
        if path in files:
            oid = hashlib.sha1(files[path]).hexdigest()
            return [{"type": "file", "oid": oid, "size": len(files[path]), "path": path}]
        if any(each.startswith(f"{path}/") for each in files):
            return [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path}]
        return []

    def _answer_file(self, content: bytes | None) -> None:
        if content is None:
            self._answer_json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": "a" * 40, "Accept-Ranges": "bytes"}
        total = len(content)
        status, wished = 200, self.headers.get("Range", "")
        if wished.startswith("bytes="):
            first, _, last = wished.removeprefix("bytes=").partition("-")
            start = int(first) if first else total - int(last)
            end = int(last) + 1 if first and last else total
            content, status = content[start:end], 206
            headers["Content-Range"] = f"bytes {start}-{min(end, total) - 1}/{total}"
            self.server.num_ranges += 1
        self._answer(content, status, headers)

    def _answer_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    def _answer(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def read_body(handler: BaseHTTPRequestHandler) -> bytes:
    """Read the body of a request, sent whole or in chunks."""
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    chunks = []
    while size := int(handler.rfile.readline(), 16):
        chunks.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(chunks)


def revision(files: dict[str, bytes]) -> str:
    digest = hashlib.sha1()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()
