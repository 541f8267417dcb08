"""The Hub of the tests against the real client: what it keeps, what it refuses, and how it fails when asked to."""

import hashlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    RepoCard,
    file_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http

from tests.helpers.golden import ROOT
from tests.helpers.hub_server import LICENSES, READ_TOKEN, STRANGER_TOKEN, WRITE_TOKEN, HubServer, Request, Token

httpx = getattr(_http, "httpx2", None) or _http.httpx  # huggingface_hub 2 and 1
HELLO = "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object of b"hello\n"
MODEL = "tester/model"
WEIGHTS = bytes(range(256)) * 400
CARD = "---\nlicense: mit\npipeline_tag: image-feature-extraction\ntags:\n- remote-sensing\n---\n# A model\n"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        yield server
    assert not server.errors


@pytest.fixture
def pauses(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Points the client of this process at the server and takes down the seconds it would have waited."""
    waited: list[float] = []
    clock = SimpleNamespace(**{**vars(time), "sleep": waited.append})
    monkeypatch.setattr(_http, "time", clock)
    monkeypatch.setattr(file_download, "time", clock)
    hub.take_client(monkeypatch)
    return waited


@pytest.fixture
def api(hub: HubServer, pauses: list[float]) -> HfApi:
    client = HfApi(endpoint=hub.url, token=WRITE_TOKEN)
    client.create_repo(MODEL)
    return client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "export"
    path.mkdir()
    (path / "README.md").write_text(CARD)
    (path / "config.json").write_text('{"model_type": "gtsa", "auto_map": {}}')
    (path / "model.safetensors").write_bytes(WEIGHTS)
    return path


def sent(hub: HubServer, method: str, part: str) -> list[Request]:
    return [request for request in hub.requests if request.method == method and part in request.path]


def ask(url: str, data: bytes | None = None, method: str | None = None, **headers: str) -> tuple[int, dict, bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


# Repositories and files


def test_a_repository_is_created_once_and_deleted(hub, api):
    assert api.create_repo("tester/other", private=True).repo_id == "tester/other"
    assert api.model_info("tester/other").private is True
    assert api.create_repo("tester/other", exist_ok=True).repo_id == "tester/other"
    with pytest.raises(HfHubHTTPError, match="You already created this model repo") as error:
        api.create_repo("tester/other")
    assert error.value.response.status_code == 409
    assert api.create_repo("demo", repo_type="space", space_sdk="gradio").repo_id == "tester/demo"
    assert api.space_info("tester/demo").sdk == "gradio"
    assert set(hub.files("tester/other")) == {".gitattributes"}
    api.delete_repo("tester/other")
    assert not api.repo_exists("tester/other")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("tester/other")
    api.delete_repo("tester/other", missing_ok=True)
    assert api.create_repo("lab/of_an_organization").repo_id == "lab/of_an_organization"


def test_whoami_tells_who_and_with_what_right(hub, api):
    hub.tokens["hf_fine"] = Token("tester", "fineGrained", permissions=("repo.content.read",))
    for token, role in ((WRITE_TOKEN, "write"), (READ_TOKEN, "read"), ("hf_fine", "fineGrained")):
        answer = api.whoami(token=token)
        assert (answer["name"], answer["type"], answer["auth"]["accessToken"]["role"]) == ("tester", "user", role)
        assert answer["auth"]["accessToken"]["displayName"].startswith("test")
        assert [organization["name"] for organization in answer["orgs"]] in (["lab"], [])
    assert answer["auth"]["accessToken"]["fineGrained"]["scoped"][0]["permissions"] == ["repo.content.read"]
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_unknown")


def test_files_arrive_small_ones_in_the_commit_and_large_ones_by_lfs(hub, api, folder):
    (folder / "notes.txt").write_text("hello\n")
    commit = api.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="First")
    files = hub.files(MODEL)
    assert files.pop(".gitattributes")
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [c["title"] for c in hub.commits(MODEL)] == ["First", "initial commit"]
    assert commit.oid == hub.commits(MODEL)[0]["id"]
    assert [request.received for request in sent(hub, "PUT", "/lfs/")] == [len(WEIGHTS)]
    weights, notes = sorted(api.get_paths_info(MODEL, ["model.safetensors", "notes.txt"]), key=lambda file: file.path)
    assert (notes.blob_id, notes.size, notes.lfs) == (HELLO, 6, None)
    assert weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert weights.size == weights.lfs.size == len(WEIGHTS)
    tree = {file.path: file for file in api.list_repo_tree(MODEL, recursive=True, expand=True)}
    assert tree["notes.txt"].last_commit.oid == commit.oid
    assert tree[".gitattributes"].last_commit.title == "initial commit"


def test_what_has_not_changed_is_not_sent_again(hub, api, folder):
    first = api.upload_folder(repo_id=MODEL, folder_path=folder)
    hub.requests.clear()
    assert api.upload_folder(repo_id=MODEL, folder_path=folder).oid == first.oid
    assert not sent(hub, "PUT", "/lfs/")
    assert not sent(hub, "POST", "/commit/")
    (folder / "config.json").write_text('{"model_type": "other"}')
    (folder / "copy.safetensors").write_bytes(WEIGHTS)
    second = api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert not sent(hub, "PUT", "/lfs/")
    assert hub.commits(MODEL)[0]["parent"] == first.oid
    assert hub.files(MODEL)["copy.safetensors"] == WEIGHTS
    assert hub.files(MODEL, first.oid)["config.json"] == b'{"model_type": "gtsa", "auto_map": {}}'
    assert [c.commit_id for c in api.list_repo_commits(MODEL)][:2] == [second.oid, first.oid]


def test_branches_tags_and_older_revisions(hub, api, folder, tmp_path):
    first = api.upload_folder(repo_id=MODEL, folder_path=folder)
    api.create_tag(MODEL, tag="v1.0")
    api.create_branch(MODEL, branch="next/step", revision="v1.0")
    operations = [
        CommitOperationDelete("config.json"),
        CommitOperationAdd("a/b/hello.txt", b"hello\n"),
        CommitOperationAdd("model.safetensors", b"new" + WEIGHTS),
    ]
    second = api.create_commit(MODEL, operations, commit_message="Second", revision="next/step")
    assert api.model_info(MODEL).sha == api.model_info(MODEL, revision="v1.0").sha == first.oid
    assert api.model_info(MODEL, revision="next/step").sha == second.oid
    assert {branch.name for branch in api.list_repo_refs(MODEL).branches} == {"main", "next/step"}
    assert [tag.target_commit for tag in api.list_repo_refs(MODEL).tags] == [first.oid]
    for revision, weights in (("v1.0", WEIGHTS), ("next/step", b"new" + WEIGHTS), (first.oid, WEIGHTS)):
        got = Path(api.snapshot_download(MODEL, revision=revision, cache_dir=tmp_path / revision[:4]))
        names = {str(path.relative_to(got)) for path in got.rglob("*") if path.is_file()}
        assert names == set(hub.files(MODEL, revision))
        assert (got / "model.safetensors").read_bytes() == weights
    assert (got / "config.json").exists()
    assert api.file_exists(MODEL, "a/b/hello.txt", revision="next/step")
    assert not api.file_exists(MODEL, "a/b/hello.txt")
    api.delete_folder("a", MODEL, revision="next/step")
    assert not api.file_exists(MODEL, "a/b/hello.txt", revision="next/step")
    with pytest.raises(HfHubHTTPError, match="exists already"):
        api.create_tag(MODEL, tag="v1.0")
    api.create_tag(MODEL, tag="v1.0", exist_ok=True)
    api.delete_tag(MODEL, tag="v1.0")
    api.delete_branch(MODEL, branch="next/step")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(MODEL, revision="next/step")
    with pytest.raises(HfHubHTTPError, match="default branch"):
        api.delete_branch(MODEL, branch="main")


def test_a_commit_on_a_parent_that_is_no_longer_the_head_is_refused(hub, api):
    head = hub.commits(MODEL)[0]["id"]
    api.upload_file(path_or_fileobj=b"hello\n", path_in_repo="a.txt", repo_id=MODEL, parent_commit=head)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        api.upload_file(path_or_fileobj=b"2", path_in_repo="b.txt", repo_id=MODEL, parent_commit=head)
    assert error.value.response.status_code == 412
    with pytest.raises(RemoteEntryNotFoundError, match="A file with this name doesn't exist"):
        api.delete_file("b.txt", MODEL)
    assert set(hub.files(MODEL)) == {".gitattributes", "a.txt"}
    assert len(hub.commits(MODEL)) == 2


def test_the_info_of_a_repository_is_read_from_its_card_and_config(hub, api, folder):
    api.upload_folder(repo_id=MODEL, folder_path=folder)
    info = api.model_info(MODEL, files_metadata=True)
    assert (info.pipeline_tag, info.card_data.license, info.author) == ("image-feature-extraction", "mit", "tester")
    assert {"remote-sensing", "license:mit", "custom_code", "gtsa"} <= set(info.tags)
    assert info.config["model_type"] == "gtsa"
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert sizes["model.safetensors"] == len(WEIGHTS)
    assert {sibling.lfs is None for sibling in info.siblings} == {True, False}
    assert info.last_modified >= info.created_at
    few = api.model_info(MODEL, expand=["tags", "lastModified"])
    assert few.tags == info.tags
    assert few.sha is few.siblings is None


# Cards


@pytest.mark.skipif(
    "https://huggingface.co" in inspect.getsource(RepoCard.validate),
    reason="hub 1 asks huggingface.co, whatever HF_ENDPOINT",
)
def test_model_card_validate_tells_good_from_bad(api):
    result = EvalResult("image-classification", "eurosat", "EuroSAT", "accuracy", 0.9)
    data = ModelCardData(
        license="apache-2.0", library_name="transformers", datasets=["a/b"], model_name="m", eval_results=[result]
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n# A model\n").validate(repo_type="model")
    with pytest.raises(ValueError, match="must be one of") as error:
        ModelCard(CARD.replace("mit", "my-own")).validate(repo_type="model")
    assert json.loads(str(error.value)) == {
        "errors": [{"message": f'"license" must be one of [{", ".join(LICENSES.split())}]'}],
        "warnings": [],
    }


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("license: [unclosed", "bad YAML"),
        ("- a list", "must be a mapping"),
        ("license: my-own", '"license" must be one of [apache-2.0, mit'),
        ("license: mit\ntags: vit", '"tags" must be an array'),
        ("license: mit\ndatasets: [1]", '"datasets[0]" must be a string'),
        ("license: mit\nbase_model: /a path/", '"base_model" with value'),
        ("license: mit\nmodel-index: {}", '"model-index" must be an array'),
        ("license: mit\nmodel-index: [{name: m, results: [{task: {}}]}]", 'results[0].dataset" is required'),
        ("license: mit\nmodel-index: [{results: []}]", '"model-index[0].name" is required'),
    ],
)
def test_a_bad_card_is_refused_before_anything_is_sent(hub, api, card, message):
    text = f"---\n{card}\n---\n"
    asked = json.dumps({"content": text, "repoType": "model"}).encode()
    status, _, body = ask(f"{hub.url}/api/validate-yaml", asked)
    assert (status, message in body.decode().replace('\\"', '"')) == (400, True), body
    with pytest.raises(ValueError) as error:  # noqa: PT011
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=MODEL)
    assert "Invalid metadata in README.md" in str(error.value)
    assert message in str(error.value)
    assert not sent(hub, "POST", "preupload")


def test_a_card_without_metadata_or_with_an_unknown_task_is_warned_about(hub, api):
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(path_or_fileobj=b"# A model\n", path_in_repo="README.md", repo_id=MODEL)
    with pytest.warns(UserWarning, match="not in the official list"):
        api.upload_file(path_or_fileobj=b"---\npipeline_tag: dreaming\n---\n", path_in_repo="README.md", repo_id=MODEL)
    assert len(hub.commits(MODEL)) == 3


# Rights


def test_a_token_that_may_only_read_writes_nothing(hub, api, folder):
    reader = HfApi(endpoint=hub.url, token=READ_TOKEN)
    with pytest.raises(HfHubHTTPError, match="403 Forbidden: You don't have the rights to create a model"):
        reader.create_repo("tester/new")
    assert reader.create_repo(MODEL, exist_ok=True).repo_id == MODEL
    with pytest.raises(HfHubHTTPError, match="You have read access but not the required permissions") as error:
        reader.upload_folder(repo_id=MODEL, folder_path=folder)
    assert error.value.response.status_code == 403
    oid = hashlib.sha256(WEIGHTS).hexdigest()
    batch = json.dumps({"operation": "upload", "objects": [{"oid": oid, "size": len(WEIGHTS)}]}).encode()
    for path, body in ((f"{MODEL}.git/info/lfs/objects/batch", batch), (f"api/models/{MODEL}/commit/main", b"")):
        status, headers, _ = ask(f"{hub.url}/{path}", body, "POST", Authorization=f"Bearer {READ_TOKEN}")
        assert status == 403
        assert headers["X-Error-Message"].startswith("You have read access")
    with pytest.raises(HfHubHTTPError, match="create_pr=1"):
        api.upload_folder(repo_id=MODEL, folder_path=folder, token=STRANGER_TOKEN)
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(endpoint=hub.url, token=False).upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id=MODEL)
    assert len(hub.commits(MODEL)) == 1


def test_private_and_gated_repositories(hub, api, tmp_path):
    hub.add("tester/hidden", {"a.txt": b"hello\n"}, kind="model", private=True)
    hub.add("tester/asked", {"a.txt": b"hello\n"}, gated="auto")
    hub.add("tester/closed", {"a.txt": b"hello\n"}, gated="manual")
    stranger, nobody = (HfApi(endpoint=hub.url, token=token) for token in (STRANGER_TOKEN, False))
    for client in (stranger, nobody):
        assert not client.repo_exists("tester/hidden")
        with pytest.raises(RepositoryNotFoundError):
            client.hf_hub_download("tester/hidden", "a.txt", cache_dir=tmp_path)
        assert client.dataset_info("tester/closed").gated == "manual"
        with pytest.raises(GatedRepoError):
            client.file_exists("tester/closed", "a.txt", repo_type="dataset")
    with pytest.raises(GatedRepoError):
        nobody.file_exists("tester/asked", "a.txt", repo_type="dataset")
    assert stranger.file_exists("tester/asked", "a.txt", repo_type="dataset")
    for name, kind in (("tester/hidden", "model"), ("tester/closed", "dataset")):
        assert Path(api.hf_hub_download(name, "a.txt", repo_type=kind, cache_dir=tmp_path)).read_bytes() == b"hello\n"
    api.update_repo_settings("tester/hidden", private=False)
    assert nobody.repo_exists("tester/hidden")
    with pytest.raises(HfHubHTTPError, match="401"):
        api.model_info(MODEL, token="hf_unknown")


# The protocol below the client


def test_parts_of_a_file(hub):
    commit = hub.add("user/data", {"part.tar": WEIGHTS, "a.txt": b"hello\n"})
    url = f"{hub.url}/datasets/user/data/resolve/main/part.tar"
    for asked, first, stop in (
        ("bytes=10-19", 10, 20),
        ("bytes=102390-", 102390, 102400),
        ("bytes=-7", 102393, 102400),
    ):
        status, headers, body = ask(url, Range=asked)
        assert (status, body) == (206, WEIGHTS[first:stop])
        assert headers["Content-Range"] == f"bytes {first}-{stop - 1}/102400"
    status, headers, body = ask(url, method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, "102400", b"")
    assert headers["X-Repo-Commit"] == commit
    assert headers["ETag"] == headers["X-Linked-Etag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert ask(url, Range="bytes=102400-")[0] == 416
    assert ask(url.replace("part.tar", "a.txt"))[1]["ETag"] == f'"{HELLO}"'
    status, headers, _ = ask(url.replace("part.tar", "b.txt"))
    assert (status, headers["X-Error-Code"], headers["X-Repo-Commit"]) == (404, "EntryNotFound", commit)
    assert ask(url.replace("main", "other"))[1]["X-Error-Code"] == "RevisionNotFound"
    assert ask(url.replace("/data/", "/nothing/"))[1]["X-Error-Code"] == "RepoNotFound"
    status, _, body = ask(f"{hub.url}/api/agent-harnesses")
    assert (status, "no such route" in json.loads(body)["error"]) == (404, True)
    for kind, data in (("json", b'{"paths": ["a.txt", "none"]}'), ("x-www-form-urlencoded", b"paths=a.txt&paths=none")):
        _, _, body = ask(f"{hub.url}/api/datasets/user/data/paths-info/main", data, Content_Type=f"application/{kind}")
        assert [(entry["path"], entry["oid"]) for entry in json.loads(body)] == [("a.txt", HELLO)]


def test_lfs_objects_are_what_they_say_and_pointers_need_them(hub, api):
    oid = hashlib.sha256(b"right").hexdigest()
    for content, size, status in ((b"wrong", 5, 400), (b"right", 6, 400), (b"right", 5, 200)):
        lines = [
            {"key": "header", "value": {"summary": "Point"}},
            {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": oid, "size": 5}},
        ]
        body = b"\n".join(json.dumps(line).encode() for line in lines)
        url = f"{hub.url}/api/models/{MODEL}/commit/main"
        before = ask(url, body, "POST", Authorization=f"Bearer {WRITE_TOKEN}")
        assert (before[0], b"does not exist" in before[2]) == (400, True)
        assert ask(f"{hub.url}/lfs/models/{MODEL}/{oid}/{size}", content, "PUT")[0] == status
    assert ask(url, body, "POST", Authorization=f"Bearer {WRITE_TOKEN}")[0] == 200
    assert hub.files(MODEL)["a.bin"] == b"right"
    with pytest.raises(BadRequestError):
        api.create_commit(MODEL, [_with_path("a/../b")], commit_message="Climb")


def _with_path(path: str) -> CommitOperationAdd:
    operation = CommitOperationAdd("a", b"1")
    operation.path_in_repo = path
    return operation


# Faults


@pytest.mark.parametrize("match", ["preupload", "objects/batch", "PUT /lfs/", "objects/verify"])
@pytest.mark.parametrize(("effect", "wait"), [({"status": 503}, [1]), ({"status": 429, "retry_after": 6}, [7])])
def test_errors_before_the_commit_are_retried_by_the_client(hub, api, folder, pauses, match, effect, wait):
    hub.fail(match, **effect)
    api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert pauses == wait
    assert hub.files(MODEL)["model.safetensors"] == WEIGHTS


def test_an_upload_that_is_cut_off_is_begun_again(hub, api, folder, pauses):
    hub.fail("PUT /lfs/", cut_upload=70_000, times=2)
    api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert [request.received for request in sent(hub, "PUT", "/lfs/")] == [70_000, 70_000, len(WEIGHTS)]
    assert pauses == [1, 2]
    assert hub.files(MODEL)["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize("effect", [{"status": 500}, {"status": 429, "retry_after": 1}, {"cut_upload": 50}])
def test_a_commit_that_fails_is_not_retried_and_leaves_nothing(hub, api, folder, pauses, effect):
    hub.fail("/commit/main", **effect)
    with pytest.raises((HfHubHTTPError, httpx.TransportError)) as error:
        api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert isinstance(error.value, HfHubHTTPError) == ("status" in effect)
    assert (len(hub.commits(MODEL)), pauses) == (1, [])
    hub.requests.clear()
    api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert not sent(hub, "PUT", "/lfs/")
    assert hub.files(MODEL)["model.safetensors"] == WEIGHTS


def test_an_upload_that_keeps_failing_is_given_up_with_the_name_of_the_file(hub, api, folder, pauses):
    hub.fail("PUT /lfs/", status=500, times=6)
    with pytest.raises(RuntimeError, match="Error while uploading 'model.safetensors' to the Hub") as error:
        api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert isinstance(error.value.__cause__, HfHubHTTPError)
    assert pauses == [1, 2, 4, 8, 8]
    assert len(hub.commits(MODEL)) == 1


@pytest.mark.parametrize(
    "match", ["whoami", "repos/create", "validate-yaml", "commit/main", "tag/main", "revision/main"]
)
def test_requests_that_the_client_makes_only_once(hub, api, folder, pauses, match):
    def everything() -> None:
        api.whoami()
        api.create_repo("tester/new")
        api.upload_folder(repo_id=MODEL, folder_path=folder)
        api.create_tag(MODEL, tag="v1")
        api.model_info(MODEL, revision="main")

    fault = hub.fail(match, status=503)
    with pytest.raises(HfHubHTTPError, match="503"):
        everything()
    assert (fault.times, pauses) == (0, [])


def test_a_gateways_page_in_place_of_the_check_of_a_card_looks_like_a_wrong_value(hub, api, folder):
    hub.fail("validate-yaml", status=503, page="<html>Service Unavailable</html>")
    with pytest.raises(json.JSONDecodeError):  # a ValueError, as a wrong card is, but not its message
        api.upload_folder(repo_id=MODEL, folder_path=folder)


def test_a_commit_whose_answer_is_lost_has_happened(hub, api, folder):
    hub.fail("/commit/main", cut_answer=-1)
    with pytest.raises(httpx.TransportError):
        api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert len(hub.commits(MODEL)) == 2
    assert api.upload_folder(repo_id=MODEL, folder_path=folder).oid == hub.commits(MODEL)[0]["id"]
    assert len(hub.commits(MODEL)) == 2


def test_a_download_that_is_cut_off_is_taken_up_where_it_stopped(hub, api, tmp_path, pauses):
    hub.add(MODEL, {"model.safetensors": WEIGHTS}, kind="model")
    hub.fail("^GET .*/resolve/", cut_answer=30_000)
    path = Path(api.hf_hub_download(MODEL, "model.safetensors", cache_dir=tmp_path / "cache"))
    assert path.read_bytes() == WEIGHTS
    assert len(sent(hub, "GET", "/resolve/")) == 2
    assert pauses == [1]


def test_slow_answers_and_slow_disks_take_their_time(hub, api, folder):
    hub.fail("PUT /lfs/", slow_disk=0.3)
    hub.fail("preupload", stall=0.3)
    hub.fail("/commit/main", slow_disk=0.3)
    hub.fail("revision/", drip=0.25, skip=1)
    begun = time.monotonic()
    api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert 0.9 <= time.monotonic() - begun < 15
    begun = time.monotonic()
    assert api.model_info(MODEL, revision="main").sha
    assert time.monotonic() - begun < 0.7
    assert api.model_info(MODEL, revision="main").sha
    assert 0.75 <= time.monotonic() - begun < 15


# Death


def environment(url: str, home: Path) -> dict[str, str]:
    removed = ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE")
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    return {**kept, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": WRITE_TOKEN}


def push(url: str, folder: Path) -> subprocess.Popen:
    program = "import sys; from huggingface_hub import HfApi; print(HfApi().upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2]).oid)"
    command = [sys.executable, "-c", program, MODEL, str(folder)]
    return subprocess.Popen(command, env=environment(url, folder.parent / "home"), stdout=subprocess.PIPE, text=True)


def test_a_client_killed_in_the_middle_of_a_push_leaves_nothing_and_goes_on_where_it_was(hub, api, folder):
    (folder / "second.safetensors").write_bytes(WEIGHTS * 100)
    fault = hub.fail(f"PUT /lfs/.*/{len(WEIGHTS) * 100}", pause=1_000_000)
    commit = hub.fail("/commit/main", pause=0)
    child = push(hub.url, folder)
    assert fault.reached.wait(20)
    for _ in range(200):
        if any(request.status == 200 for request in sent(hub, "PUT", "/lfs/")):
            break
        time.sleep(0.02)
    child.kill()
    child.communicate()
    fault.release()
    assert not commit.reached.is_set()
    assert len(hub.commits(MODEL)) == 1
    hub.clear_faults()
    hub.requests.clear()
    again = push(hub.url, folder)
    oid, _ = again.communicate(timeout=30)
    assert oid.strip() == hub.commits(MODEL)[0]["id"]
    assert [request.received for request in sent(hub, "PUT", "/lfs/")] == [len(WEIGHTS) * 100]
    assert hub.files(MODEL)["second.safetensors"] == WEIGHTS * 100


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], tuple[subprocess.Popen, str]]]:
    """Starts the server as a process of its own on tmp_path / "killed"; gives the process and its address."""
    started: list[subprocess.Popen] = []

    def run() -> tuple[subprocess.Popen, str]:
        command = [sys.executable, str(ROOT / "tests" / "helpers" / "hub_server.py"), str(tmp_path / "killed")]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        return started[-1], started[-1].stdout.readline().strip()

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_a_server_killed_in_the_middle_of_a_commit_has_what_was_committed_before(pauses, folder, tmp_path, start):
    process, url = start()
    api = HfApi(endpoint=url, token=WRITE_TOKEN)
    api.create_repo(MODEL)
    first = api.upload_file(path_or_fileobj=b"hello\n", path_in_repo="a.txt", repo_id=MODEL)
    api.create_tag(MODEL, tag="v1")
    ask(f"{url}/faults", json.dumps({"match": "/commit/main", "pause": 20}).encode())
    child = push(url, folder)
    for _ in range(1000):
        faults: list[dict[str, Any]] = json.loads(ask(f"{url}/faults")[2])
        if faults[0]["reached"]:
            break
        time.sleep(0.02)
    log = json.loads(ask(f"{url}/log")[2])
    assert [entry["received"] for entry in log if entry["method"] == "PUT"] == [len(WEIGHTS)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    child.communicate(timeout=30)
    assert child.returncode != 0

    process, url = start()
    api = HfApi(endpoint=url, token=WRITE_TOKEN)
    assert api.model_info(MODEL).sha == api.model_info(MODEL, revision="v1").sha == first.oid
    assert api.list_repo_files(MODEL) == [".gitattributes", "a.txt"]
    api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert not [entry for entry in json.loads(ask(f"{url}/log")[2]) if entry["method"] == "PUT"]
    assert "model.safetensors" in api.list_repo_files(MODEL)
    process.kill()
    process.wait()
    with HubServer(tmp_path / "killed") as server:
        assert server.files(MODEL)["model.safetensors"] == WEIGHTS


def test_faults_can_be_released_and_forgotten_over_http(hub):
    ask(f"{hub.url}/faults", json.dumps({"match": "whoami", "pause": 0}).encode())
    ask(f"{hub.url}/faults", json.dumps({"match": "whoami", "status": 503, "times": 100}).encode())
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(ask, f"{hub.url}/api/whoami-v2")
        assert hub.faults[0].reached.wait(10)
        assert not answer.done()
        ask(f"{hub.url}/faults/0/release", b"")
        assert answer.result(10)[0] == 401
    assert ask(f"{hub.url}/api/whoami-v2")[0] == 503
    ask(f"{hub.url}/faults", method="DELETE")
    assert ask(f"{hub.url}/api/whoami-v2")[0] == 401
    assert [entry["status"] for entry in json.loads(ask(f"{hub.url}/log")[2])] == [401, 503, 401]
    ask(f"{hub.url}/log", method="DELETE")
    assert hub.requests == []
