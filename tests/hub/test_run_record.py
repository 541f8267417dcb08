"""The record of a run in plain values: versions, names of the Hub, digests, number formats, log lines, arguments."""

import hashlib
import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import TrainingArguments

from hf_geossl.hub import run_record
from hf_geossl.version import __version__

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123"


def test_versions_are_known_from_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_record.installed_versions()["torch"] == importlib.metadata.version("torch")

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(run_record, "version", missing)
    assert run_record.installed_versions() == {"hf_geossl": __version__}


def test_hub_ids_are_told_from_paths_and_single_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "folder").mkdir(parents=True)
    names = ("user/name", "my/folder", "name", "a/b/c", "/user/name", "user/a b", f"user/{TOKEN}", None)
    assert [run_record.is_hub_id(name) for name in names] == [True] + [False] * 7


def test_the_digest_is_of_all_weights_and_their_names(tmp_path: Path) -> None:
    assert run_record.weights_digest(tmp_path) is None
    (tmp_path / "model-2.safetensors").write_bytes(b"b")
    (tmp_path / "model-1.safetensors").write_bytes(b"a")
    text = "".join(
        f"model-{number}.safetensors {hashlib.sha256(content).hexdigest()} "
        for number, content in ((1, b"a"), (2, b"b"))
    )
    assert run_record.weights_digest(tmp_path) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_number_formats_are_those_of_the_file(tmp_path: Path) -> None:
    assert run_record.weights_dtypes(tmp_path) == []
    save_file({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert run_record.weights_dtypes(tmp_path) == ["bfloat16", "float32"]
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert run_record.weights_dtypes(tmp_path) == []


def test_losses_are_evenly_spread_with_both_ends() -> None:
    history = [{"step": step, "loss": 1 / step, "x_loss": 2.0, "share": 0.5, "lr": 1.0} for step in range(1, 101)]
    chosen = run_record.measured_losses([*history, {"step": 100, "eval_loss": 3.0}], ["share"], lines=4)
    assert [entry["step"] for entry in chosen] == [1, 34, 67, 100]
    assert chosen[0] == {"step": 1, "loss": 1.0, "x_loss": 2.0, "share": 0.5}
    assert run_record.measured_losses([{"step": 1}], []) == []


def test_arguments_that_others_read_have_no_place_and_no_token(tmp_path: Path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path), run_name=TOKEN, max_steps=7, hub_token=TOKEN, report_to="none", use_cpu=True,
        logging_steps=3,
    )  # fmt: skip
    shared = run_record.shared_arguments(args)
    assert shared["max_steps"] == 7
    assert shared["logging_steps"] == 3
    assert not {"output_dir", "run_name", "hub_token", "learning_rate"} & shared.keys()
    run_record.write_arguments({**shared, "note": f"{TOKEN} /home/alice/x"}, tmp_path)
    written = yaml.safe_load((tmp_path / run_record.ARGUMENTS).read_text())
    assert written == {**shared, "note": "(removed) (local path)"}


def test_a_record_has_what_is_known_and_nothing_private(tmp_path: Path) -> None:
    record = {
        "steps": 8,
        "weights_step": 4,
        "losses": [],
        "held_out": None,
        "command": f"x --hub_token {TOKEN}",
        "seed": 0,
    }
    run_record.write_record(record, tmp_path)
    assert json.loads((tmp_path / run_record.RECORD).read_text()) == {
        "steps": 8, "weights_step": 4, "command": "x (removed)", "seed": 0,
    }  # fmt: skip
