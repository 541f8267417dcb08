"""A small read-only Hub: serves datasets from memory as the real one does, and fails when asked to."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubReader:
    """Args: repositories (`dict`): id -> {path: bytes}; gated (`set`): ids whose files need a token."""

    def __init__(self, repositories: dict[str, dict[str, bytes]], gated: frozenset[str] = frozenset()) -> None:
        self.fail_next = 0  # that many requests for files answer 500; set by GET /fail/<number>
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def reply(self, status: int, body: bytes, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def answer(self, value: object, status: int = 200, **headers: str) -> None:
                self.reply(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

            def entries(self, files: dict[str, bytes], folder: str, recursive: bool) -> list[dict]:
                found: dict[str, dict] = {}
                for path, content in sorted(files.items()):
                    if folder and not path.startswith(folder + "/"):
                        continue
                    parts = path[len(folder) :].strip("/").split("/")
                    for depth in range(1, len(parts)) if recursive else range(1, min(2, len(parts))):
                        name = "/".join(filter(None, [folder, *parts[:depth]]))
                        found[name] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
                    if recursive or len(parts) == 1:
                        oid = hashlib.sha1(content).hexdigest()
                        found[path] = {"type": "file", "oid": oid, "size": len(content), "path": path}
                return list(found.values())

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                self.body = self.rfile.read(length)
                self.do_GET()

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                path = unquote(url.path)
                if path.startswith("/fail/"):
                    hub.fail_next = int(path.rpartition("/")[2])
                    self.answer({})
                elif found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/.*)?", path):
                    repository, rest = found[1], found[2] or ""
                    if repository not in repositories:
                        self.answer({"error": "Repository not found"}, 401, X_Error_Code="RepoNotFound")
                        return
                    files = repositories[repository]
                    kind, _, rest = rest.strip("/").partition("/")
                    revision, _, folder = rest.partition("/")
                    if revision not in ("", "main", COMMIT):
                        self.answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
                    elif kind in ("", "revision"):
                        siblings = [{"rfilename": name} for name in files]
                        self.answer(
                            {"id": repository, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
                        )
                    elif kind == "tree":
                        self.answer(self.entries(files, folder, "recursive=true" in url.query.lower()))
                    elif kind == "paths-info":
                        everything = {entry["path"]: entry for entry in self.entries(files, "", True)}
                        if self.headers.get("Content-Type", "").startswith("application/json"):
                            wanted = json.loads(self.body)["paths"]
                        else:
                            wanted = [
                                unquote(part[6:]) for part in self.body.decode().split("&") if part[:6] == "paths="
                            ]
                        self.answer([everything[name] for name in wanted if name in everything])
                    else:
                        self.answer({"error": "no such route"}, 404)
                elif found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
                    self.send_file(found[1], found[3])
                else:
                    self.answer({"error": "no such route"}, 404)

            def send_file(self, repository: str, name: str) -> None:
                if repository in gated and "authorization" not in self.headers:
                    self.answer({"error": "gated"}, 403, X_Error_Code="GatedRepo")
                    return
                content = repositories.get(repository, {}).get(name)
                if content is None:
                    self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                    return
                if hub.fail_next and self.command == "GET":
                    hub.fail_next -= 1
                    self.answer({"error": "down"}, 500)
                    return
                headers = {
                    "X_Repo_Commit": COMMIT,
                    "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                    "Accept_Ranges": "bytes",
                }
                span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                if span is None:
                    self.reply(200, content, **headers)
                    return
                start, stop = int(span[1]), int(span[2] or len(content) - 1) + 1
                headers["Content_Range"] = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
                self.reply(206, content[start:stop], **headers)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
