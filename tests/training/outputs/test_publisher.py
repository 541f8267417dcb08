"""Pushes of a run: one after the other, beside the training, and none that ends it."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from hf_geossl import GTSATrainingArguments
from hf_geossl.training.outputs import publisher as module
from hf_geossl.training.outputs.publisher import HubPublisher


class Hub:
    """Stands for `publish`: notes what is sent, waits where it is told to, fails where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        monkeypatch.setattr(module, "publish", self.publish)
        monkeypatch.setattr(module, "push_files", lambda *args, **kwargs: None)
        monkeypatch.setattr(module, "check_write_access", lambda name, token: f"user/{name}")

    def publish(self, folder: Path, repo_id: str, **kwargs: Any) -> str:
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        self.sent.append((Path(folder).name, {**kwargs, "repo_id": repo_id}))
        return f"sent {len(self.sent)}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


def _publisher(run: Path, **fields: Any) -> HubPublisher:
    args = GTSATrainingArguments(str(run), use_cpu=True, max_steps=1, push_to_hub=True, hub_token="hf_x", **fields)
    return HubPublisher(args, args.hub_token)


def _step(publisher: HubPublisher, run: Path, step: int) -> None:
    folder = publisher.step_folder(step)
    assert folder is not None
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    checkpoint = run / f"checkpoint-{step}"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "optimizer.pt").write_bytes(b"state")
    publisher.push_step(folder, checkpoint, step)


def test_the_repository_is_named_after_the_folder_of_the_run(hub: Hub, tmp_path: Path) -> None:
    publisher = _publisher(tmp_path / "driving", hub_private_repo=True, hub_revision="trial")
    assert publisher.publish("words", results={"knn": {"accuracy": 0.5}}) == "sent 1"
    assert publisher.publication == "sent 1"
    name, sent = hub.sent[0]
    assert (name, sent["repo_id"], sent["private"], sent["revision"]) == ("driving", "user/driving", True, "trial")
    assert (sent["message"], sent["token"], sent["results"]) == ("words", "hf_x", {"knn": {"accuracy": 0.5}})
    assert publisher.publish("more", private=False, revision="main", token="hf_y", blocking=False).result() == "sent 2"
    assert [hub.sent[1][1][key] for key in ("private", "revision", "token")] == [False, "main", "hf_y"]


def test_steps_are_sent_beside_the_training_and_their_folders_go(hub: Hub, tmp_path: Path) -> None:
    publisher = _publisher(tmp_path, hub_strategy="checkpoint")
    hub.gate.clear()
    _step(publisher, tmp_path, 2)  # returns although nothing has been sent
    assert hub.sent == []
    assert publisher.step_folder(4) is None  # the first one is still being sent
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()  # the run removes its checkpoint
    hub.gate.set()
    publisher.wait()
    (name, sent), *rest = hub.sent
    assert (name, sent["message"], rest) == (".push-2", "Training in progress, step 2", [])
    assert [str(path) for path in sent["extra_files"]] == ["last-checkpoint/optimizer.pt"]
    assert not (tmp_path / ".push-2").exists()
    assert publisher.step_folder(4) == tmp_path / ".push-4"


def test_all_are_sent_in_their_order_where_all_are_wanted(hub: Hub, tmp_path: Path) -> None:
    publisher = _publisher(tmp_path, hub_strategy="all_checkpoints", hub_always_push=True)
    hub.gate.clear()
    _step(publisher, tmp_path, 2)
    _step(publisher, tmp_path, 4)
    hub.gate.set()
    publisher.publish("end")
    assert [name for name, _ in hub.sent] == [".push-2", ".push-4", tmp_path.name]
    assert list(hub.sent[1][1]["extra_files"]) == ["checkpoint-4/optimizer.pt"]


def test_a_step_that_cannot_be_sent_is_a_warning(hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publisher = _publisher(tmp_path, hub_strategy="every_save")
    hub.error = ConnectionError("no route")
    with caplog.at_level(logging.WARNING):
        _step(publisher, tmp_path, 2)
        publisher.wait()
    assert "step 2 was not pushed, and the run goes on: ConnectionError: no route" in caplog.text
    assert not (tmp_path / ".push-2").exists()
    with pytest.raises(ConnectionError):  # asked for by name it is an error
        publisher.publish("end")


def test_nothing_is_sent_within_a_run_that_pushes_at_its_end(hub: Hub, tmp_path: Path) -> None:
    assert _publisher(tmp_path, hub_strategy="end").step_folder(2) is None
    args = GTSATrainingArguments(str(tmp_path), use_cpu=True, max_steps=1)
    assert HubPublisher(args, None).step_folder(2) is None
