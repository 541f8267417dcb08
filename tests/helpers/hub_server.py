"""A Hub for tests: a real HTTP server that speaks the protocol of huggingface.co and keeps everything on disk.

In a test: `HubServer(tmp_path)` with `HfApi(endpoint=server.url, token=WRITE_TOKEN)`, or a process of its own with
HF_ENDPOINT=server.url and HF_HOME=<empty folder>, both set before huggingface_hub is imported. As a program:
`python tests/hub_server.py ROOT --port 8000`.

Set HF_HUB_DISABLE_XET=1 in every process that uploads (in the test's own too: `huggingface_hub.constants`): where
hf_xet is installed the client otherwise sends every large file to Xet storage, which this server does not have.

Left out: pull requests, multipart uploads, Xet, pages of a listing, renaming, kernels, buckets. Large files are sent
by the server itself where the real Hub redirects to a CDN. Access to a gated repository: "auto" lets every known user
in, "manual" the owner alone.

Faults: `server.fail("PUT /lfs/", status=503, times=2)`, or over HTTP `POST /faults {"match": ..., "status": 503}`,
`GET /faults`, `POST /faults/0/release`, `DELETE /faults`; what was asked: `server.requests`, `GET /log`, `DELETE /log`.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITE_TOKEN, READ_TOKEN, STRANGER_TOKEN = "hf_testwrite", "hf_testread", "hf_teststranger"
LARGEST_REGULAR_FILE = 10 * 1024 * 1024
LARGE_FILES = """*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy
*.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite
*.tgz *.wasm *.xz *.zip *.zst *tfevents*"""  # the .gitattributes that the Hub gives a new repository
LARGE_MEDIA = "*.aac *.flac *.mp3 *.ogg *.wav *.bmp *.gif *.png *.tiff *.jpg *.jpeg *.webp *.mp4 *.webm"
LICENSES = """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
other"""
TASKS = """depth-estimation image-classification image-feature-extraction image-segmentation image-to-image
image-to-text image-to-video keypoint-detection mask-generation object-detection unconditional-image-generation
video-classification zero-shot-image-classification zero-shot-object-detection any-to-any audio-classification
audio-to-audio automatic-speech-recognition document-question-answering feature-extraction fill-mask graph-ml image-text-to-text other question-answering
reinforcement-learning robotics sentence-similarity summarization table-question-answering tabular-classification
tabular-regression text-classification text-generation text-ranking text-to-3d text-to-audio text-to-image
text-to-speech text-to-video time-series-forecasting token-classification translation visual-document-retrieval
visual-question-answering voice-activity-detection zero-shot-classification"""
FRONT_MATTER = re.compile(r"^\s*---[\r\n]+([\S\s]*?)[\r\n]+---(\r\n|\n|$)")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Refused(Exception):
    """A request that is answered with an error. `code` is what the client chooses its exception by."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message, **more}
        self.headers = {"X-Error-Message": message.replace("\n", " ")}
        if code:
            self.headers["X-Error-Code"] = code


class CutConnection(Exception):
    """The connection is to be closed without another word."""


class Answer(NamedTuple):
    body: bytes
    status: int = 200
    headers: Mapping[str, str] = {}


@dataclass(frozen=True)
class Token:
    """Who a token belongs to and what it may do. `role` is "write", "read" or "fineGrained" (with `permissions`)."""

    user: str
    role: str = "write"
    display_name: str = "test"
    organizations: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()

    @property
    def writes(self) -> bool:
        return self.role == "write" or "repo.write" in self.permissions

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.user, *self.organizations)


TOKENS = {
    WRITE_TOKEN: Token("tester", "write", "test write", ("lab",)),
    READ_TOKEN: Token("tester", "read", "test read", ("lab",)),
    STRANGER_TOKEN: Token("stranger", "write", "of somebody else"),
}


@dataclass
class Request:
    """One line of the log. `received` counts the bytes of the body that were read; `status` is None until answered."""

    method: str
    path: str
    received: int = 0
    status: int | None = None


@dataclass
class Fault:
    """What happens to the next requests that `match`; see `HubServer.fail`."""

    match: str
    times: int = 1
    skip: int = 0
    status: int | None = None
    retry_after: int | None = None
    page: str | None = None
    cut_upload: int | None = None
    cut_answer: int | None = None
    stall: float = 0.0
    drip: float = 0.0
    slow_disk: float = 0.0
    pause: int | None = None
    reached: threading.Event = field(default_factory=threading.Event, repr=False)
    released: threading.Event = field(default_factory=threading.Event, repr=False)

    def release(self) -> None:
        self.released.set()

    def describe(self) -> dict[str, Any]:
        events = {"reached": self.reached.is_set(), "released": self.released.is_set()}
        return {name: value for name, value in vars(self).items() if name not in events} | events


# Cards


def read_card(content: str) -> Any:
    """The front matter of a README, None when there is none. Raises `yaml.YAMLError`."""
    block = FRONT_MATTER.match(content)
    return yaml.safe_load(block[1]) if block else None


def check_card(content: str, kind: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about a card, in the words of the real Hub where they are known."""
    try:
        card = read_card(content)
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"], []
    if card is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(card, dict):
        return ["the metadata must be a mapping"], []
    errors, warnings = [], []
    one_of = lambda name, choices: f'"{name}" must be one of [{", ".join(choices)}]'  # noqa: E731
    for name in ("tags", "datasets", "license", "language", "metrics", "base_model"):
        value = card.get(name)
        if value is None:
            continue
        if name in ("tags", "datasets") and not isinstance(value, list):
            errors.append(f'"{name}" must be an array')
        for place, item in enumerate(value if isinstance(value, list) else [value]):
            label = f"{name}[{place}]" if isinstance(value, list) else name
            if not isinstance(item, str):
                errors.append(f'"{label}" must be a string')
            elif name == "license" and item not in LICENSES.split():
                errors.append(one_of(label, LICENSES.split()))
            elif name == "base_model" and not HUB_ID.fullmatch(item):
                errors.append(f'"{label}" with value "{item}" is not valid. Use a model id from https://hf.co/models.')
            elif name == "datasets" and not HUB_ID.fullmatch(item):
                warnings.append(f'"{label}" with value "{item}" is not valid. Use a dataset id of the Hub.')
    for name in ("pipeline_tag", "library_name", "license_name", "license_link", "title"):
        if not isinstance(card.get(name, ""), str):
            errors.append(f'"{name}" must be a string')
    if card.get("pipeline_tag") not in (None, *TASKS.split()):
        warnings.append(f'The pipeline tag "{card["pipeline_tag"]}" is not in the official list')
    if card.get("model-index") is not None:
        errors.extend(check_model_index(card["model-index"]))
    if kind == "space":
        colors = ["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]
        for name, choices in {"sdk": ["gradio", "docker", "static"], "colorFrom": colors, "colorTo": colors}.items():
            if card.get(name, choices[0]) not in choices:
                errors.append(one_of(name, choices))
        if len(str(card.get("short_description", ""))) > 60:
            errors.append('"short_description" length must be less than or equal to 60 characters long')
    return errors, warnings


def check_model_index(index: Any) -> list[str]:
    """Errors in the shape of `model-index`: a list of {name, results: [{task, dataset, metrics}]}."""
    errors = []

    def need(holder: Any, key: str, kind: type, label: str) -> Any:
        value = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(value, kind) and value not in ("", [], {}):
            return value
        word = "a string" if kind is str else "an array" if kind is list else "an object"
        errors.append(f'"{label}.{key}" is required' if value is None else f'"{label}.{key}" must be {word}')
        return kind()

    for i, model in enumerate(index if isinstance(index, list) else []):
        need(model, "name", str, f"model-index[{i}]")
        for j, result in enumerate(need(model, "results", list, f"model-index[{i}]")):
            label = f"model-index[{i}].results[{j}]"
            if task := need(result, "task", dict, label):
                need(task, "type", str, f"{label}.task")
            if dataset := need(result, "dataset", dict, label):
                need(dataset, "type", str, f"{label}.dataset")
                need(dataset, "name", str, f"{label}.dataset")
            for k, metric in enumerate(need(result, "metrics", list, label)):
                need(metric, "type", str, f"{label}.metrics[{k}]")
                if not isinstance(metric, dict) or metric.get("value") is None:
                    errors.append(f'"{label}.metrics[{k}].value" is required')
    return errors if isinstance(index, list) else ['"model-index" must be an array']


# Repositories


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def matches(path: str, patterns: list[str]) -> bool:
    """Whether a path, its name or one of its folders matches a pattern of .gitattributes or .gitignore."""
    parts = path.split("/")
    names = [path, *parts, *("/".join(parts[:depth]) for depth in range(1, len(parts)))]
    return any(fnmatchcase(name, pattern.strip("/")) for name in names for pattern in patterns)


@dataclass
class Repository:
    """One repository: `repo.json` holds its whole history, `objects/` the contents by git sha1 or (LFS) by sha256.

    A file of a commit is {"oid", "size"} and for LFS also "sha256". The history is replaced by one rename.
    """

    folder: Path
    kind: str
    id: str
    private: bool = False
    gated: str | bool = False
    sdk: str | None = None
    created: str = field(default_factory=now)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Any]] = field(default_factory=dict)

    def save(self) -> None:
        record = {name: value for name, value in asdict(self).items() if name != "folder"}
        draft = self.folder / f"draft-{uuid.uuid4().hex}"
        draft.write_text(json.dumps(record, indent=1))
        os.replace(draft, self.folder / "repo.json")

    def store(self, name: str, content: bytes) -> None:
        draft = self.folder / f"draft-{uuid.uuid4().hex}"
        draft.write_bytes(content)
        os.replace(draft, self.object(name))

    def object(self, name: str) -> Path:
        return self.folder / "objects" / name

    def content(self, file: Mapping[str, Any]) -> bytes:
        return self.object(file.get("sha256") or file["oid"]).read_bytes()

    def resolve(self, revision: str | None) -> dict[str, Any]:
        """The commit that a branch, a tag, a full ref or a (shortened) commit id names."""
        name = revision or "main"
        oid = self.branches.get(name.removeprefix("refs/heads/")) or self.tags.get(name.removeprefix("refs/tags/"))
        if oid is None and re.fullmatch(r"[0-9a-f]{5,40}", name):
            oid = next((known for known in self.commits if known.startswith(name)), None)
        if oid is None:
            raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return self.commits[oid]

    def history(self, commit: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        while commit is not None:
            yield commit
            commit = self.commits.get(commit["parent"])

    def text(self, commit: Mapping[str, Any], path: str) -> str:
        file = commit["files"].get(path)
        return "" if file is None else self.content(file).decode(errors="replace")

    def is_large(self, commit: Mapping[str, Any], path: str, size: int, sample: bytes) -> bool:
        lines = [line.split() for line in self.text(commit, ".gitattributes").splitlines()]
        patterns = [words[0] for words in lines if "filter=lfs" in words[1:]]
        return matches(path, patterns) or size > LARGEST_REGULAR_FILE or b"\0" in sample

    def file(self, content: bytes, large: bool) -> dict[str, Any]:
        """Stores a content and returns the entry of a commit."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.store(sha256 if large else git_blob(content), content)
        return self.pointer(sha256, len(content)) if large else {"oid": git_blob(content), "size": len(content)}

    def pointer(self, sha256: str, size: int) -> dict[str, Any]:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return {"oid": git_blob(text), "size": size, "sha256": sha256, "pointerSize": len(text)}

    def commit(self, branch: str, files: dict[str, dict[str, Any]], title: str, message: str, user: str) -> str:
        """Makes `files` the new head of a branch. It can be seen when `save` has renamed the history, not before."""
        record: dict[str, Any] = {"title": title, "message": message, "author": user, "date": now(), "files": files}
        record["parent"] = self.branches.get(branch)
        oid = hashlib.sha1(json.dumps([self.kind, self.id, record, uuid.uuid4().hex]).encode()).hexdigest()
        self.commits[oid] = {"id": oid, **record}
        self.branches[branch] = oid
        self.save()
        return oid

    def entries(self, commit: dict[str, Any], expand: bool = False) -> dict[str, dict[str, Any]]:
        """Every file and folder of a commit in the shape of the tree, by path."""
        found: dict[str, dict[str, Any]] = {}
        for path, file in sorted(commit["files"].items()):
            parts = path.split("/")
            for depth in range(1, len(parts)):
                name = "/".join(parts[:depth])
                inside = {key: f["oid"] for key, f in commit["files"].items() if key.startswith(name + "/")}
                oid = hashlib.sha1(json.dumps(inside, sort_keys=True).encode()).hexdigest()
                found.setdefault(name, {"type": "directory", "oid": oid, "size": 0, "path": name})
            found[path] = {"type": "file", "oid": file["oid"], "size": file["size"], "path": path}
            if "sha256" in file:
                found[path]["lfs"] = {name: file[name] for name in ("size", "pointerSize")} | {"oid": file["sha256"]}
            if expand:
                last = commit
                for older in self.history(commit):
                    if older["files"].get(path) != file:
                        break
                    last = older
                found[path]["lastCommit"] = {name: last[name] for name in ("id", "title", "date")}
        return found

    def info(self, commit: dict[str, Any], blobs: bool, expand: list[str]) -> dict[str, Any]:
        """What /api/models/{id} answers; `expand` leaves the named fields alone."""
        siblings: list[dict[str, Any]] = []
        for path, file in sorted(commit["files"].items()):
            siblings.append({"rfilename": path} | ({"size": file["size"], "blobId": file["oid"]} if blobs else {}))
            if blobs and "sha256" in file:
                siblings[-1]["lfs"] = {name: file[name] for name in ("size", "sha256", "pointerSize")}
        card: Any = {}
        config: Any = {}
        with contextlib.suppress(yaml.YAMLError):
            card = read_card(self.text(commit, "README.md"))
        with contextlib.suppress(json.JSONDecodeError):
            config = json.loads(self.text(commit, "config.json") or "{}")
        card, config = (value if isinstance(value, dict) else {} for value in (card, config))
        tags = [value for value in (card.get("library_name"), config.get("model_type")) if value]
        for name, prefix in (("tags", ""), ("language", ""), ("license", "license:"), ("datasets", "dataset:")):
            values = card.get(name) or []
            tags += [f"{prefix}{value}" for value in (values if isinstance(values, list) else [values])]
        tags += ["custom_code"] if "auto_map" in config else []
        everything = {
            "author": self.id.split("/")[0],
            "cardData": card or None,
            "createdAt": self.created,
            "disabled": False,
            "downloads": 0,
            "gated": self.gated,
            "lastModified": commit["date"],
            "likes": 0,
            "private": self.private,
            "sha": commit["id"],
            "siblings": siblings,
            "tags": [*dict.fromkeys(tags), "region:us"],
            "usedStorage": sum(file["size"] for file in commit["files"].values()),
        }
        if self.kind == "model":
            everything |= {name: card.get(name) for name in ("library_name", "pipeline_tag", "model-index")}
            shown = ("architectures", "model_type", "auto_map")
            everything["config"] = {name: config[name] for name in shown if name in config}
            everything["modelId"] = self.id
        if self.kind == "space":
            everything["sdk"] = self.sdk
        kept = {name: everything.get(name) for name in expand} if expand else everything
        return {"_id": hashlib.sha1(self.id.encode()).hexdigest()[:24], "id": self.id, **kept}


# The server

Route = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []
ID = r"([^/]+(?:/[^/]+)?)"
API = rf"/api/(model|dataset|space)s/{ID}"
LFS_ADDRESS = re.compile(rf"/lfs/(model|dataset|space)s/{ID}/([0-9a-f]{{64}})/(\d+)")


def route(method: str, pattern: str) -> Callable[[Route], Route]:
    def register(function: Route) -> Route:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    body = json.dumps(value, default=str).encode()
    return Answer(body, status, {"Content-Type": "application/json; charset=utf-8", **headers})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: "Listener"

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *args: object) -> None:
        pass

    def dispatch(self) -> None:
        self.hub = self.server.hub
        self.url = urlsplit(self.path)
        self.query = {name.removesuffix("[]"): values for name, values in parse_qs(self.url.query).items()}
        self.left, self.fault, self.entry = int(self.headers.get("Content-Length", 0)), None, Request("", "")
        try:
            if self.url.path.split("/")[1] in ("faults", "log"):
                self.send(self.control())
                return
            self.entry, self.fault = self.hub.arrived(self.command, self.path)
            try:
                self.send(self.handle_hub())
            except Refused as refusal:
                self.send(as_json(refusal.body, refusal.status, **refusal.headers))
        except (CutConnection, ConnectionError):
            self.close_connection = True
            # A reset, not a polite end: what the client still sends has nowhere to go.
            with contextlib.suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.shutdown(socket.SHUT_RDWR)
        except Exception:
            self.hub.errors.append(traceback.format_exc())
            self.close_connection = True
            self.send(as_json({"error": "Internal Error - the test server is broken, see its `errors`"}, 500))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = dispatch

    def handle_hub(self) -> Answer:
        fault = self.fault
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.close_connection = True
            raise Refused(411, "Length Required")  # as the storage of the real Hub
        if fault is not None:
            time.sleep(fault.stall)
            if fault.status is not None:
                self.read_body()
                wait = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                if fault.page is not None:
                    return Answer(fault.page.encode(), fault.status, {"Content-Type": "text/html", **wait})
                return as_json({"error": "asked to fail"}, fault.status, **wait)
        if self.command == "PUT" and (found := LFS_ADDRESS.fullmatch(self.url.path)):
            return self.put_large_file(*found.groups())
        self.body = self.read_body()
        if fault is not None:
            time.sleep(fault.slow_disk)
        self.token = None
        credentials = self.headers.get("Authorization", "")
        if credentials:
            self.token = self.hub.tokens.get(credentials.removeprefix("Bearer "))
            if self.token is None:
                raise Refused(401, "Invalid credentials in Authorization header")
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, function in ROUTES:
            if wanted == method and (found := pattern.fullmatch(self.url.path)):
                with self.hub.lock:
                    return function(self, *(value and unquote(value) for value in found.groups()))
        raise Refused(404, f"no such route: {self.command} {self.url.path}")

    def control(self) -> Answer:
        """The switches of the tests: faults and the log. They are neither logged nor made to fail."""
        body, hub = self.read_body(), self.hub
        _, subject, *rest = self.url.path.split("/")
        if subject == "log":
            if self.command == "DELETE":
                hub.requests.clear()
            return as_json([asdict(request) for request in list(hub.requests)])
        if self.command == "DELETE":
            hub.clear_faults()
        elif self.command == "POST" and not rest:
            hub.fail(**json.loads(body))
        elif self.command == "POST":
            hub.faults[int(rest[0])].release()
        return as_json([fault.describe() for fault in hub.faults])

    def pieces(self) -> Iterator[bytes]:
        """The body as it arrives, with the pause or the cut that was asked for in the middle of it."""
        fault = self.fault or Fault("")
        while True:
            received = self.entry.received
            if fault.pause is not None and received >= fault.pause and not fault.released.is_set():
                fault.reached.set()
                fault.released.wait()
            if fault.cut_upload is not None and received >= fault.cut_upload:
                raise CutConnection
            if not self.left:
                return
            stops = [stop - received for stop in (fault.pause, fault.cut_upload) if stop and stop > received]
            piece = self.rfile.read(min(self.left, 65536, *stops) if stops else min(self.left, 65536))
            if not piece:
                raise CutConnection  # the client is gone
            self.left -= len(piece)
            self.entry.received += len(piece)
            yield piece

    def read_body(self) -> bytes:
        return b"".join(self.pieces())

    def send(self, answer: Answer) -> None:
        fault = self.fault or Fault("")
        if self.left and not self.close_connection:
            self.read_body()
        if fault.cut_answer is not None and fault.cut_answer < 0:
            raise CutConnection
        self.entry.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("X-Request-Id", f"test-{uuid.uuid4().hex[:8]}")
        self.end_headers()
        body = b"" if self.command == "HEAD" else answer.body[: fault.cut_answer]
        size = max(1, -(-len(body) // 4)) if fault.drip else max(1, len(body))
        for start in range(0, len(body), size):
            time.sleep(fault.drip if start else 0)
            self.wfile.write(body[start : start + size])
            self.wfile.flush()
        self.wfile.flush()
        if fault.cut_answer is not None:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def repository(self, kind: str, name: str, write: bool = False, content: bool = False) -> Repository:
        """A repository that this request may see, write to (`write`) or read files of (`content`)."""
        found, token = self.hub.repositories.get((kind, name)), self.token
        owner = token is not None and name.split("/")[0] in token.namespaces
        if found is None or (found.private and not owner):
            raise Refused(404 if token else 401, "Repository not found", "RepoNotFound")
        if write and token is None:
            raise Refused(401, "Invalid username or password.")
        if write and not owner:
            raise Refused(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        if write and token is not None and not token.writes:
            raise Refused(403, "You have read access but not the required permissions for this operation")
        if content and found.gated and not owner and (token is None or found.gated == "manual"):
            message = f"Access to {kind} {name} is restricted. You must have access to it and be authenticated."
            raise Refused(403 if token else 401, message, "GatedRepo")
        return found

    def web(self, kind: str, name: str) -> str:
        return f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("true", "1")

    # Account and repositories

    @route("GET", "/api/whoami-v2")
    def whoami(self) -> Answer:
        token = self.token
        if token is None:
            raise Refused(401, "Invalid username or password.")
        access: dict[str, Any] = {"displayName": token.display_name, "role": token.role, "createdAt": now()}
        if token.role == "fineGrained":
            scope = {"entity": {"type": "user", "name": token.user}, "permissions": list(token.permissions)}
            access["fineGrained"] = {"canReadGatedRepos": True, "global": [], "scoped": [scope]}
        user: dict[str, Any] = {"type": "user", "id": "5e0000000000000000000001", "name": token.user}
        user |= {"fullname": token.user.title(), "email": f"{token.user}@example.org", "emailVerified": True}
        user |= {"canPay": False, "isPro": False}
        orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": "write"} for name in token.organizations]
        return as_json({**user, "orgs": orgs, "auth": {"type": "access_token", "accessToken": access}})

    @route("POST", "/api/repos/create")
    def create(self) -> Answer:
        wanted, token = json.loads(self.body), self.token
        if token is None:
            raise Refused(401, "Invalid username or password.")
        kind, namespace = wanted.get("type") or "model", wanted.get("organization") or token.user
        name = f"{namespace}/{wanted['name']}"
        if not token.writes or namespace not in token.namespaces:
            raise Refused(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
        if not re.fullmatch(r"[\w.-]{1,96}", wanted["name"]):
            raise Refused(400, f"Invalid repository name: {wanted['name']}")
        if (kind, name) in self.hub.repositories:
            raise Refused(409, f"You already created this {kind} repo", url=self.web(kind, name))
        if kind == "space" and wanted.get("sdk") not in ("gradio", "docker", "static", "streamlit"):
            raise Refused(400, '"sdk" must be one of [gradio, docker, static]')
        private = wanted.get("private") or wanted.get("visibility") == "private"
        made = self.hub.create(name, kind, private=bool(private), sdk=wanted.get("sdk"), user=token.user)
        return as_json({"url": self.web(kind, name), "name": name, "id": made.id, "private": made.private})

    @route("DELETE", "/api/repos/delete")
    def delete(self) -> Answer:
        wanted = json.loads(self.body)
        namespace = wanted.get("organization") or (self.token.user if self.token else "")
        repository = self.repository(wanted.get("type") or "model", f"{namespace}/{wanted['name']}", write=True)
        del self.hub.repositories[repository.kind, repository.id]
        (repository.folder / "repo.json").unlink()
        shutil.rmtree(repository.folder)
        return Answer(b"OK")

    @route("PUT", rf"{API}/settings")
    def settings(self, kind: str, name: str) -> Answer:
        repository, wanted = self.repository(kind, name, write=True), json.loads(self.body)
        if "visibility" in wanted or "private" in wanted:
            repository.private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        repository.gated = wanted.get("gated", repository.gated)
        repository.save()
        return as_json({"private": repository.private, "gated": repository.gated})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> Answer:
        asked = json.loads(self.body)
        found = check_card(asked["content"], asked.get("repoType") or "model")
        errors, warnings = ([{"message": text} for text in texts] for texts in found)
        return as_json({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    # Uploads

    @route("POST", rf"{API}/preupload/([^/]+)")
    def preupload(self, kind: str, name: str, revision: str) -> Answer:
        repository, asked = self.repository(kind, name, write=True), json.loads(self.body)
        commit = repository.resolve(revision)
        ignore = (asked.get("gitIgnore") or repository.text(commit, ".gitignore")).splitlines()
        ignored = [line.strip() for line in ignore if line.strip() and not line.startswith(("#", "!"))]
        files = []
        for file in asked["files"]:
            path, size = file["path"], file["size"]
            known = commit["files"].get(path, {})
            large = repository.is_large(commit, path, size, base64.b64decode(file.get("sample", "")))
            oid = known.get("sha256") or known.get("oid")  # what the client compares its own file with
            mode = "lfs" if large else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": matches(path, ignored), "oid": oid})
        return as_json({"files": files, "commitOid": commit["id"]})

    @route("POST", rf"/(?:(dataset|space)s/)?{ID}\.git/info/lfs/objects/batch")
    def lfs_batch(self, kind: str | None, name: str) -> Answer:
        repository, objects = self.repository(kind or "model", name, write=True), []
        for wanted in json.loads(self.body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            objects.append({"oid": oid, "size": size})
            if not repository.object(oid).exists():
                upload = f"{self.hub.url}/lfs/{repository.kind}s/{name}/{oid}/{size}"
                verify = f"{self.web(repository.kind, name)}.git/info/lfs/objects/verify"
                objects[-1]["actions"] = {"upload": {"href": upload, "header": {}}, "verify": {"href": verify}}
        return as_json({"transfer": "basic", "objects": objects})

    def put_large_file(self, kind: str, name: str, oid: str, size: str) -> Answer:
        """Stores an LFS object, if it is what it says. The address alone gives the right to, as with S3."""
        repository = self.hub.repositories.get((kind, unquote(name)))
        if repository is None:
            raise Refused(404, "Repository not found", "RepoNotFound")
        draft, digest = repository.folder / f"draft-{uuid.uuid4().hex}", hashlib.sha256()
        try:
            with draft.open("wb") as file:
                for piece in self.pieces():
                    digest.update(piece)
                    file.write(piece)
            time.sleep(self.fault.slow_disk if self.fault else 0)
            if digest.hexdigest() != oid or draft.stat().st_size != int(size):
                raise Refused(400, "The SHA-256 or the size you specified did not match what was received")
            os.replace(draft, repository.object(oid))
        finally:
            draft.unlink(missing_ok=True)
        return Answer(b"", headers={"ETag": f'"{oid}"'})

    @route("POST", rf"/(?:(dataset|space)s/)?{ID}\.git/info/lfs/objects/verify")
    def lfs_verify(self, kind: str | None, name: str) -> Answer:
        repository, asked = self.repository(kind or "model", name, write=True), json.loads(self.body)
        stored = repository.object(asked["oid"])
        if not stored.exists() or stored.stat().st_size != asked["size"]:
            raise Refused(404, f"LFS object {asked['oid']} is not stored")
        return as_json({})

    @route("POST", rf"{API}/commit/([^/]+)")
    def commit(self, kind: str, name: str, revision: str) -> Answer:
        repository = self.repository(kind, name, write=True)
        if self.flag("create_pr"):
            raise Refused(403, "Pull requests are disabled for this repository")
        branch = revision.removeprefix("refs/heads/")
        if branch not in repository.branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head, lines = repository.resolve(branch), [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = next((line["value"] for line in lines if line["key"] == "header"), None)
        if not header or not header.get("summary"):
            raise Refused(400, '"summary" is required')
        if not head["id"].startswith(header.get("parentCommit") or ""):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head["files"])
        for line in lines:
            if line["key"] != "header":
                self.apply(repository, files, line["key"], line["value"])
        if "README.md" in files and files["README.md"] != head["files"].get("README.md"):
            errors, _ = check_card(repository.text({"files": files}, "README.md"), kind)
            if errors:
                raise Refused(400, "Invalid metadata in README.md: " + "; ".join(errors))
        user = self.token.user if self.token else ""
        oid = repository.commit(branch, files, header["summary"], header.get("description", ""), user)
        address = f"{self.web(kind, name)}/commit/{oid}"
        return as_json({"success": True, "commitOid": oid, "commitUrl": address, "hookOutput": ""})

    def apply(self, repository: Repository, files: dict[str, Any], key: str, value: dict[str, Any]) -> None:
        """One line of a commit, applied to the files of its parent."""
        path = value["path"]
        if not path.strip("/") or path.startswith("/") or {"", ".", "..", ".git"} & set(path.rstrip("/").split("/")):
            raise Refused(400, f"Invalid path: {path}")
        if key == "file":
            content = base64.b64decode(value["content"]) if value["encoding"] == "base64" else value["content"].encode()
            if len(content) > LARGEST_REGULAR_FILE:
                raise Refused(400, f"{path} is larger than 10 MiB: it must be uploaded as LFS")
            files[path] = repository.file(content, large=False)
        elif key == "lfsFile":
            stored = repository.object(value["oid"])
            if not re.fullmatch(r"[0-9a-f]{64}", value["oid"]) or not stored.exists():
                raise Refused(400, f"LFS pointer pointed to a file that does not exist: {path}")
            if value.get("size", stored.stat().st_size) != stored.stat().st_size:
                raise Refused(400, f"LFS pointer with a wrong size: {path}")
            files[path] = repository.pointer(value["oid"], stored.stat().st_size)
        elif key == "deletedFile" and files.pop(path, None) is None:
            raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        elif key == "deletedFolder":
            inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
            if not inside:
                raise Refused(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
            for name in inside:
                del files[name]
        elif key not in ("deletedFile", "deletedFolder"):
            raise Refused(400, f"Unknown operation: {key}")

    # Reading

    @route("GET", rf"{API}(?:/revision/([^/]+))?")
    def info(self, kind: str, name: str, revision: str | None) -> Answer:
        repository = self.repository(kind, name)
        expand = self.query.get("expand", [])
        return as_json(repository.info(repository.resolve(revision), self.flag("blobs"), expand))

    @route("GET", rf"{API}/tree/([^/]+)(?:/(.+))?")
    def tree(self, kind: str, name: str, revision: str, folder: str | None) -> Answer:
        repository = self.repository(kind, name)
        entries = repository.entries(repository.resolve(revision), self.flag("expand"))
        start = f"{folder.strip('/')}/" if folder else ""
        inside = [entry for path, entry in entries.items() if path.startswith(start)]
        if start and not inside:
            raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        if not self.flag("recursive"):
            inside = [entry for entry in inside if "/" not in entry["path"][len(start) :]]
        return as_json(inside)

    @route("POST", rf"{API}/paths-info/([^/]+)")
    def paths_info(self, kind: str, name: str, revision: str) -> Answer:
        repository = self.repository(kind, name)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = json.loads(self.body)
        else:
            form = parse_qs(self.body.decode())
            asked = {"paths": form.get("paths", []), "expand": form.get("expand", [""])[0].lower() == "true"}
        entries = repository.entries(repository.resolve(revision), bool(asked.get("expand")))
        return as_json([entries[path] for path in asked["paths"] if path in entries])

    @route("GET", rf"{API}/commits/([^/]+)")
    def list_commits(self, kind: str, name: str, revision: str) -> Answer:
        repository, keys = self.repository(kind, name), ("id", "title", "message", "date")
        found = repository.history(repository.resolve(revision))
        return as_json([{key: c[key] for key in keys} | {"authors": [{"user": c["author"]}]} for c in found])

    @route("GET", rf"{API}/refs")
    def refs(self, kind: str, name: str) -> Answer:
        repository, found = self.repository(kind, name), {}
        for key, folder, refs in (("branches", "heads", repository.branches), ("tags", "tags", repository.tags)):
            found[key] = [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": oid} for n, oid in refs.items()]
        return as_json({**found, "converts": [], "pullRequests": []})

    @route("POST", rf"{API}/branch/([^/]+)")
    def create_branch(self, kind: str, name: str, branch: str) -> Answer:
        repository = self.repository(kind, name, write=True)
        if branch in repository.branches:
            raise Refused(409, f"Reference already exists: refs/heads/{branch}")
        start = json.loads(self.body or b"{}").get("startingPoint")
        repository.branches[branch] = repository.resolve(start)["id"]
        repository.save()
        return as_json({})

    @route("POST", rf"{API}/tag/([^/]+)")
    def create_tag(self, kind: str, name: str, revision: str) -> Answer:
        repository, tag = self.repository(kind, name, write=True), json.loads(self.body)["tag"]
        if tag in repository.tags:
            raise Refused(409, f"Tag reference exists already: {tag}")
        repository.tags[tag] = repository.resolve(revision)["id"]
        repository.save()
        return as_json({})

    @route("DELETE", rf"{API}/(branch|tag)/([^/]+)")
    def delete_ref(self, kind: str, name: str, what: str, ref: str) -> Answer:
        repository = self.repository(kind, name, write=True)
        refs = repository.branches if what == "branch" else repository.tags
        if what == "branch" and ref == "main":
            raise Refused(403, "Cannot delete the default branch")
        if refs.pop(ref, None) is None:
            raise Refused(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        repository.save()
        return as_json({})

    @route("GET", rf"/(?:(dataset|space)s/)?{ID}/resolve/([^/]+)/(.+)")
    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> Answer:
        repository = self.repository(kind or "model", name, content=True)
        commit = repository.resolve(revision)
        headers = {"X-Repo-Commit": commit["id"], "Accept-Ranges": "bytes"}
        file = commit["files"].get(path)
        if file is None:
            refusal = Refused(404, "Entry not found", "EntryNotFound")
            refusal.headers |= headers
            raise refusal
        content, size = repository.content(file), file["size"]
        headers |= {"ETag": f'"{file.get("sha256") or file["oid"]}"', "Content-Type": "application/octet-stream"}
        if "sha256" in file:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(size)}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not (asked[1] or asked[2]):
            return Answer(content, headers=headers)
        first = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
        last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
        if first > last:
            return Answer(b"", 416, {**headers, "Content-Range": f"bytes */{size}"})
        return Answer(content[first : last + 1], 206, {**headers, "Content-Range": f"bytes {first}-{last}/{size}"})


class Listener(ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 64

    def __init__(self, hub: "HubServer", port: int) -> None:
        self.hub, self.connections = hub, set[socket.socket]()
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, request: Any, address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients that go away are no error
            self.hub.errors.append(traceback.format_exc())


class HubServer:
    """A running Hub.

    Args:
        root (`Path`): where everything is kept. A server that is started on the same folder again has what was
            committed before, and nothing else.
        port (`int`): 0 for a free one.
        tokens (`dict`): token -> `Token`, on top of `TOKENS`.

    Attributes: `url`; `requests`, the log; `faults`; `errors`, tracebacks of faults of the server itself.
    """

    def __init__(self, root: Path, port: int = 0, tokens: Mapping[str, Token] | None = None) -> None:
        self.root, self.tokens, self.lock = Path(root), {**TOKENS, **(tokens or {})}, threading.RLock()
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[str] = []
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.root.mkdir(parents=True, exist_ok=True)
        for path in self.root.glob("*/*/*/repo.json"):
            found = Repository(path.parent, **json.loads(path.read_text()))
            self.repositories[found.kind, found.id] = found
        for draft in self.root.glob("*/*/*/draft-*"):
            draft.unlink()
        self._listener = Listener(self, port)
        self.url = f"http://127.0.0.1:{self._listener.server_port}"
        threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True).start()

    def take_client(self, patch: Any) -> None:
        """Points huggingface_hub and datasets of this process at this server, with the token that may write.

        Args:
            patch (`pytest.MonkeyPatch`): takes it back.
        """
        import datasets
        from huggingface_hub import HfFileSystem, constants

        # Few functions ask for an endpoint only here (ModelCard.validate); the addresses of files begin with it.
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + template)
        patch.setattr(constants, "ENDPOINT", self.url)
        patch.setattr(constants, "HF_HUB_CACHE", str(self.root / "cache"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(datasets.config, "HF_ENDPOINT", self.url)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", WRITE_TOKEN)
        HfFileSystem.clear_instance_cache()

    def close(self) -> None:
        """Stops at once: open connections are cut, paused requests released."""
        self._listener.shutdown()
        self._listener.server_close()
        for connection in list(self._listener.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.clear_faults()

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def fail(self, match: str, times: int = 1, skip: int = 0, **effects: Any) -> Fault:
        """Spoils the next `times` requests whose "METHOD /path?query" has a match of the regular expression `match`.

        The first fault that matches is used; the first `skip` matches go through untouched.

        Args:
            status (`int`), retry_after (`int`, seconds): read the request, do nothing, answer with this error;
                `page` (`str`) is then sent as HTML, as gateways do, instead of JSON.
            cut_upload (`int`): close the connection after reading that many bytes of the request's body.
            cut_answer (`int`): do what was asked, send that many bytes of the answer's body and close; -1 sends nothing.
            stall (`float`): seconds to wait before reading the request.
            drip (`float`): send the answer's body in four pieces that many seconds apart.
            slow_disk (`float`): seconds that storing takes.
            pause (`int`): after reading that many bytes of the body set `fault.reached` and wait for `fault.release()`.
        """
        fault = Fault(match, times, skip, **effects)
        with self.lock:
            self.faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        """Forgets all faults and lets paused requests go on."""
        for fault in self.faults:
            fault.release()
        self.faults.clear()

    def arrived(self, method: str, path: str) -> tuple[Request, Fault | None]:
        """Writes a request to the log and finds the fault that it is to suffer."""
        request = Request(method, path)
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, f"{method} {path}"):
                    if fault.skip > 0:
                        fault.skip -= 1
                        return request, None
                    fault.times -= 1
                    if fault.pause is None:
                        fault.reached.set()
                    return request, fault
        return request, None

    def create(self, repo: str, kind: str = "model", *, user: str = "tester", **settings: Any) -> Repository:
        """Makes a repository with the .gitattributes of a new one in its first commit."""
        made = Repository(self.root / f"{kind}s" / repo, kind, repo, **settings)
        (made.folder / "objects").mkdir(parents=True)
        patterns = [*LARGE_FILES.split(), *(LARGE_MEDIA.split() if kind == "dataset" else [])]
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in patterns)
        made.commit("main", {".gitattributes": made.file(attributes.encode(), False)}, "initial commit", "", user)
        self.repositories[kind, repo] = made
        return made

    def add(self, repo: str, files: Mapping[str, bytes], kind: str = "dataset", **settings: Any) -> str:
        """Plants files in a repository, made when missing with `private`, `gated` or `sdk`; returns the commit's id."""
        with self.lock:
            found = self.repositories.get((kind, repo)) or self.create(repo, kind, **settings)
            head = found.resolve("main")
            new = {path: found.file(c, found.is_large(head, path, len(c), c[:512])) for path, c in files.items()}
            return found.commit("main", {**head["files"], **new}, "Add files", "", repo.split("/")[0])

    def add_folder(self, repo: str, folder: Path, kind: str = "model") -> str:
        """Plants all files of a folder."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.add(repo, files, kind)

    def files(self, repo: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """All contents of a revision by path, .gitattributes included."""
        with self.lock:
            found = self.repositories[kind, repo]
            return {path: found.content(file) for path, file in found.resolve(revision)["files"].items()}

    def commits(self, repo: str, revision: str = "main", kind: str = "model") -> list[dict[str, Any]]:
        """The history, newest first: {id, title, message, author, date, parent, files}."""
        with self.lock:
            found = self.repositories[kind, repo]
            return list(found.history(found.resolve(revision)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A Hugging Face Hub for tests.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with HubServer(options.root, options.port) as server:
        print(server.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    sys.exit(0)
