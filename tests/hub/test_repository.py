"""A repository is read, compared and changed through HTTP, by the real client."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_geossl.data import retries
from hf_geossl.hub.repository import PublishError, Repository, is_same, size_of
from tests.helpers.hub_server import HubServer


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setattr(retries, "sleep", lambda seconds: None)
        server.take_client(monkeypatch)
        yield server


def test_hashes_are_gits_or_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"hello\n")
    git = "ce013625030ba8dba906f756967f9e9ca394464a"  # `printf 'hello\n' | git hash-object --stdin`
    for source in (b"hello\n", tmp_path / "f"):
        assert size_of(source) == 6
        assert is_same(source, 6, git)
        assert is_same(source, 6, hashlib.sha256(b"hello\n").hexdigest())
        assert not is_same(source, 7, git)
        assert not is_same(source, 6, git.replace("c", "d"))


def test_one_commit_makes_it_hold_the_files(hub: HubServer, tmp_path: Path) -> None:
    repository = Repository("tester/m")
    assert (repository.files(), repository.read_text("a.txt")) == ({}, None)
    repository.open(private=True)
    assert repository.is_private()
    first = repository.send({"a.txt": b"1", "b.txt": b"2"}, "first")
    assert repository.read_text("a.txt") == "1"
    assert repository.send({"a.txt": b"1"}, "nothing") == first
    files = {"a.txt": b"3", "c.txt": b"4"}
    compared = {file.path: file.state for file in repository.compare(files, lambda path: path == "b.txt")}
    assert compared == {"a.txt": "changed", "b.txt": "removed", "c.txt": "new"}
    before = len(hub.commits("tester/m"))
    repository.send(files, "second", lambda path: path == "b.txt")
    assert len(hub.commits("tester/m")) == before + 1
    assert {"a.txt", "c.txt"} == set(repository.files()) - {".gitattributes"}
    (tmp_path / "a.txt").write_text("3")
    assert repository.holds([tmp_path / "a.txt"])
    assert not repository.holds([])
    assert repository.url == f"{hub.url}/tester/m"


def test_a_hub_that_fails_is_one_line(hub: HubServer) -> None:
    hub.fail("GET ", times=1000, status=503)
    with pytest.raises(PublishError, match="reading tester/m failed 4 times in a row") as caught:
        Repository("tester/m").files()
    assert "\n" not in str(caught.value)
    with pytest.raises(PublishError, match="reading tester/m failed with"):
        Repository("tester/m", pauses=()).files()
    hub.clear_faults()
