"""Whatever fails after the weights are written is a warning; pushes go one after the other and end no run."""

import json
import logging
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from hf_geossl import GTSATrainingArguments
from hf_geossl.cli.card import card
from hf_geossl.cli.pretrain import finish
from hf_geossl.hub.card import write_card
from hf_geossl.methods import METHODS
from hf_geossl.training.outputs import exporter as exporter_module
from hf_geossl.training.outputs.exporter import HubPublisher
from tests.helpers import equicoherent_run, gtsa_run, loca_run


class Hub:
    """Stands for `publish`: notes what is sent, waits where it is told to, fails where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        monkeypatch.setattr(exporter_module, "publish", self.publish)
        monkeypatch.setattr(exporter_module, "push_files", lambda *args, **kwargs: None)
        monkeypatch.setattr(exporter_module, "check_write_access", lambda name, token: f"user/{name}")

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


RUNS: dict[str, ModuleType] = {"gtsa": gtsa_run, "loca": loca_run, "equicoherent": equicoherent_run}
PICTURES = [(method, picture.file) for method, row in METHODS.items() for picture in row.pictures]


class Broken(Exception):
    """What a step after the save ends with."""


def _break(*args: Any, **kwargs: Any) -> None:
    raise Broken("it is\nbroken")


def _assert_safe(folder: Path, trainer: Any) -> None:
    """`AutoModel` opens the folder, and computes what the trained teacher computes."""
    assert {"model.safetensors", "config.json", "preprocessor_config.json"} <= {path.name for path in folder.iterdir()}
    trunk = getattr(trainer.model.teacher, trainer.model.base_model_prefix).eval()
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(AutoModel.from_pretrained(folder)(pixels).last_hidden_state, trunk(pixels).last_hidden_state)


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def _trained(method: str, folder: Path, images: Any, **fields: Any) -> Any:
    trainer = RUNS[method].make_trainer(folder, images, max_steps=2, save_steps=2, **fields)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("write_record", "the record of the run could not be made (Broken: it is broken): "),
        ("write_arguments", "the record of the run could not be made (Broken: it is broken): "),
        ("write_card", "the model card could not be made (Broken: it is broken): `geossl card run` makes it again"),
    ],
)
def test_without_record_or_card_the_model_is_there(
    name: str,
    message: str,
    smooth_images: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "run"
    trainer = _trained("gtsa", folder, smooth_images, picture=True)
    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING):
        if name == "write_arguments":  # the checkpoint before needed it
            (folder / "training_args.yaml").unlink(missing_ok=True)
        broken.setattr(exporter_module, name, _break)
        finish(trainer)
    assert [warning[: len(message)] for warning in _warnings(caplog)] == [message]
    _assert_safe(folder, trainer)
    assert (folder / "features.png").is_file()
    assert (folder / "README.md").is_file() == (name != "write_card")
    assert card([str(folder)]) == 0
    made = (folder / "README.md").read_text()
    assert "(features.png)" in made
    assert ("| optimizer steps | 2 |" in made) == (name != "write_record")
    trainer.write_card()  # from Python: record and card
    assert "| optimizer steps | 2 |" in (folder / "README.md").read_text()


def test_the_run_cannot_be_described_and_the_model_is_there(
    smooth_images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = _trained("gtsa", tmp_path / "run", smooth_images)
    trainer.exporter.describe = _break
    finish(trainer)
    (warning,) = _warnings(caplog)
    assert warning.startswith("the record of the run could not be made (Broken: it is broken): ")
    _assert_safe(tmp_path / "run", trainer)


@pytest.mark.parametrize(("method", "file"), PICTURES)
@pytest.mark.parametrize("when", ["store", "draw"])
def test_without_a_picture_everything_else_is_there(
    method: str,
    file: str,
    when: str,
    smooth_images: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where its crops could not be stored it is not drawn; where drawing fails, a resume of the finished run draws it."""
    folder = tmp_path / "run"
    row = METHODS[method]
    kind = next(picture.load() for picture in row.pictures if picture.file == file)
    others = {picture.file for picture in row.pictures} - {file}
    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING):
        broken.setattr(kind, when, _break)
        trainer = _trained(method, folder, smooth_images, picture=True)
        finish(trainer)
    (warning,) = _warnings(caplog)
    assert warning.startswith(
        f"{file}{' for the start' * (when == 'store')} could not be made (Broken: it is broken): "
    )
    _assert_safe(folder, trainer)
    assert {path.name for path in folder.glob("*.png")} == others
    text = (folder / "README.md").read_text()
    assert "| optimizer steps | 2 |" in text
    assert all(f"({other})" in text for other in others)
    assert f"({file})" not in text
    if when == "draw":
        assert "resume" in warning
        again = RUNS[method].make_trainer(folder, smooth_images, max_steps=2, picture=True)
        again.train(resume_from_checkpoint=True)
        again.save_model()
        assert (folder / file).is_file()
        assert f"({file})" in (folder / "README.md").read_text()


def test_an_evaluation_that_fails_leaves_model_and_card(
    smooth_images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    trainer = _trained("equicoherent", folder, smooth_images, eval_dataset=smooth_images[:4])
    trainer.evaluate = _break
    finish(trainer)
    (warning,) = _warnings(caplog)
    assert warning == (
        "the evaluation could not be made (Broken: it is broken): the model is saved; "
        f"`geossl evaluate {folder}` measures its features"
    )
    _assert_safe(folder, trainer)
    assert "| optimizer steps | 2 |" in (folder / "README.md").read_text()
    assert f"The model is in {folder}" in capsys.readouterr().out


def test_a_push_that_fails_leaves_model_and_card(
    smooth_images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr(HubPublisher, "create_repository", lambda self, token=None, private=None: "me/model")
    monkeypatch.setattr("hf_geossl.training.outputs.exporter.publish", _break)
    trainer = _trained("gtsa", folder, smooth_images, push_to_hub=True, hub_strategy="end")
    finish(trainer)
    (warning,) = _warnings(caplog)
    assert warning == "the push to the Hub could not be made (Broken: it is broken): `geossl publish` sends the folder"
    _assert_safe(folder, trainer)
    assert "| optimizer steps | 2 |" in (folder / "README.md").read_text()


def test_an_export_that_fails_within_the_run_does_not_end_it(
    smooth_images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk that fills up while a step is exported for a push costs that push."""
    monkeypatch.setattr(HubPublisher, "create_repository", lambda self, token=None, private=None: "me/model")
    sent: list[str] = []
    monkeypatch.setattr(
        "hf_geossl.training.outputs.exporter.publish", lambda *args, message, **kwargs: sent.append(message)
    )
    export = exporter_module.export_model

    def full(*args: Any, **kwargs: Any) -> Path:
        if trainer.state.global_step == 2:
            raise OSError(28, "No space left on device")
        return export(*args, **kwargs)

    monkeypatch.setattr(exporter_module, "export_model", full)
    trainer = gtsa_run.make_trainer(
        tmp_path / "run", smooth_images, max_steps=3, save_steps=1, push_to_hub=True, hub_strategy="every_save",
        hub_always_push=True,
    )  # fmt: skip
    trainer.train()
    trainer.publisher.wait()
    assert trainer.state.global_step == 3
    assert sent == ["Training in progress, step 1", "Training in progress, step 3"]
    (warning,) = _warnings(caplog)
    assert warning.startswith("the push of step 2 could not be made (OSError: [Errno 28] No space left on device): ")
    assert not list((tmp_path / "run").glob(".push-*"))


def test_weights_are_written_before_anything_else(smooth_images: Any, tmp_path: Path) -> None:
    """Also where the process is killed in between, as by a scheduler that waits no longer."""
    folder = tmp_path / "run"
    trainer = _trained("loca", folder, smooth_images, picture=True)
    seen: list[set[str]] = []

    def note(*args: Any) -> None:
        seen.append({path.name for path in folder.iterdir() if path.is_file()})
        raise KeyboardInterrupt

    trainer.pictures.draw = note
    with pytest.raises(KeyboardInterrupt):
        trainer.save_model()
    assert {"model.safetensors", "config.json", "preprocessor_config.json"} <= seen[0]
    assert not {"README.md", "training_run.json", "positions.png"} & seen[0]
    _assert_safe(folder, trainer)


def test_after_the_best_was_loaded_the_record_says_which_step_the_weights_are_of(
    smooth_images: Any, tmp_path: Path
) -> None:
    trainer = equicoherent_run.make_trainer(
        tmp_path, smooth_images, max_steps=8, save_steps=2, eval_steps=2, eval_strategy="steps", warmup_steps=0,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False, picture=True,
        teacher_momentum=0.5, eval_dataset=smooth_images[:4],
    )  # fmt: skip
    losses = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0}
    evaluate = trainer.evaluate

    def evaluate_given(*args: Any, **kwargs: Any) -> dict[str, float]:
        return {**evaluate(*args, **kwargs), "eval_loss": losses[trainer.state.global_step]}

    trainer.evaluate = evaluate_given
    trainer.train()
    trainer.save_model()
    record = json.loads((tmp_path / "training_run.json").read_text())
    assert (record["weights_step"], record["steps"]) == (4, 8)
    assert record["held_out"]["step"] == 4
    saved = load_file(tmp_path / "model.safetensors")
    best = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    last = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
    assert all(torch.equal(value, best[f"teacher.equicoherent.{name}"]) for name, value in saved.items())
    assert not all(torch.equal(value, last[f"teacher.equicoherent.{name}"]) for name, value in saved.items())
    card_text = write_card(tmp_path).read_text()
    assert "step 4" in card_text
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))  # nothing to train: weights of the last step
    trainer.save_model()
    assert json.loads((tmp_path / "training_run.json").read_text())["weights_step"] == 8
