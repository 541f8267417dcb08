"""Fine-tuned folders: opened by transformers, measured again to the last digit, resumed bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import hf_geossl
from hf_geossl.hub.repository import PublishError
from hf_geossl.tasks.finetuning import finetune
from hf_geossl.tasks.finetuning.finetune import measure_folder
from hf_geossl.tasks.finetuning.splits import LabelledDataset
from tests.helpers.foreign_trunks import write_foreign_trunk

TASKS = {
    "classification": ("GTSAForImageClassification", "accuracy", "image-classification"),
    "segmentation": ("GTSAForSemanticSegmentation", "mean_iou", "image-segmentation"),
    "depth": ("GTSAForDepthEstimation", "abs_rel", "depth-estimation"),
    "detection": ("GTSAForObjectDetection", "box_ap", "object-detection"),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_folder_is_measured_again_to_the_last_digit_and_opens_in_a_pipeline(
    task: str, make: Any, photographs: Path
) -> None:
    architecture, metric, name = TASKS[task]
    tuning = make(task, decoder_channels=8) if task in ("depth", "detection") else make(task)
    results = tuning.run()
    entry = results[f"finetuned_{task}"]
    written = json.loads((tuning.folder / "results.json").read_text())[f"finetuned_{task}"]
    _, split, again = measure_folder(tuning.folder, LabelledDataset(str(photographs)), device="cpu")
    assert len(split) == 6
    assert again[metric] == entry[metric] == written[metric]
    assert again["intervals"] == written["intervals"]
    config = json.loads((tuning.folder / "config.json").read_text())
    assert config["architectures"] == [architecture]
    if task != "depth":
        assert list(config["id2label"].values()) == (
            ["0", "1", "2", "3"] if task == "segmentation" else ["disc", "square", "triangle"]
        )
    kind = getattr(hf_geossl, architecture)
    model, processor = kind.from_pretrained(tuning.folder), AutoImageProcessor.from_pretrained(tuning.folder)
    picture = Image.open(photographs / "test" / "000.png")
    found = pipeline(name, model=model, image_processor=processor)(
        picture, **({"threshold": 0.0} if task == "detection" else {})
    )
    if task == "classification":
        assert {one["label"] for one in found} == {"disc", "square", "triangle"}
    elif task == "segmentation":
        assert sum(np.asarray(one["mask"]).astype(bool).sum() for one in found) == 48 * 48
    elif task == "depth":
        assert found["predicted_depth"].shape == (48, 48)
        assert 0 < found["predicted_depth"].min() < found["predicted_depth"].max() < 80
    else:
        assert {one["label"] for one in found} <= {"disc", "square", "triangle"}
    card = (tuning.folder / "README.md").read_text()
    assert f"pipeline_tag: {name}" in card
    assert f"{entry[metric]:.4g}" in card
    for picture_file in ("fine_tuning_curve.png", "fine_tuning_samples.png"):
        assert f"({picture_file})" in card
        assert Image.open(tuning.folder / picture_file).size > (100, 100)


def test_a_trunk_of_timm_is_trained_and_measured_again_to_the_last_digit(
    make: Any, photographs: Path, tmp_path: Path
) -> None:
    write_foreign_trunk("cait", tmp_path / "cait")
    tuning = make("classification", model=tmp_path / "cait", layer_decay=0.5, random_floor=True)
    before = {name: value.clone() for name, value in tuning.trainer.model.state_dict().items()}
    entry = tuning.run()["finetuned_classification"]
    _, _, again = measure_folder(tuning.folder, LabelledDataset(str(photographs)), device="cpu")
    assert again["accuracy"] == entry["accuracy"]
    after = load_file(tuning.folder / "model.safetensors")
    assert after.keys() == before.keys()
    assert not any(torch.equal(after[name], before[name]) for name in after if name.endswith("weight"))
    card = (tuning.folder / "README.md").read_text()
    assert "The trunk is timm's `cait_xxs24_224`." in card
    assert "With transformers and timm alone" in card
    assert "random_weights" in entry["details"]["floors"]["accuracy"]


class Killed(BaseException):
    """As kill -9 it passes by everything that ends a run well."""


def test_a_run_that_was_killed_goes_on_to_the_same_bits(make: Any) -> None:
    settings = {"save_steps": 2, "logging_steps": 1}
    whole = make("segmentation", "whole", **settings)
    whole.run()
    killed = make("segmentation", "killed", **settings)
    step = killed.trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = step(*args, **kwargs)
        if killed.trainer.state.global_step == 2:  # gradients of the third step are there
            raise Killed
        return loss

    killed.trainer.training_step = training_step
    with pytest.raises(Killed):
        killed.run()
    assert [path.name for path in killed.folder.glob("checkpoint-*")] == ["checkpoint-2"]
    torch.manual_seed(5)
    resumed = make("segmentation", "killed", **settings)
    resumed.run(resume_from_checkpoint=True)
    first, second = (load_file(one.folder / "model.safetensors") for one in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    logs = [[entry["loss"] for entry in one.trainer.state.log_history if "loss" in entry] for one in (whole, resumed)]
    assert len(logs[0]) == 4
    assert logs[0] == logs[1]
    results = [
        json.loads((one.folder / "results.json").read_text())["finetuned_segmentation"] for one in (whole, resumed)
    ]
    assert results[0]["mean_iou"] == results[1]["mean_iou"]


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}], ids=["all", "lora"])
def test_a_resumed_run_is_the_run_that_was_not_stopped(make: Any, settings: dict[str, Any]) -> None:
    whole = make("classification", "whole", save_steps=2, **settings)
    whole.run()
    stopped = make("classification", "stopped", save_steps=2, **settings)
    callback = stopped.trainer.preemption
    step = stopped.trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        if stopped.trainer.state.global_step == 1:
            callback.received_signal = 2  # as Ctrl-C in the second step
        return step(*args, **kwargs)

    stopped.trainer.training_step = training_step
    assert stopped.run() is None
    assert stopped.trainer.state.global_step == 2
    assert not (stopped.folder / "model.safetensors").exists()
    torch.manual_seed(5)
    resumed = make("classification", "stopped", save_steps=2, **settings)
    resumed.run(resume_from_checkpoint=True)
    first, second = (load_file(one.folder / "model.safetensors") for one in (whole, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    logs = [[entry["loss"] for entry in one.trainer.state.log_history if "loss" in entry] for one in (whole, resumed)]
    assert logs[0] == logs[1]
    others = {"seed": (42, 7), "data_seed": (None, 7), "lora_alpha": (16.0, 4.0), "weight_decay": (0.05, 0.5)}
    others |= {"warmup_steps": (0.1, 0.5), "lr_scheduler_type": ("cosine", "constant"), "learning_rate": (5e-4, 1e-6)}
    for name, (before, now) in others.items():
        other = make("classification", "stopped", save_steps=2, **{**settings, name: now})
        with pytest.raises(RuntimeError, match=f"other settings: {name} was {before!r} and is {now!r}; resume with"):
            other.trainer.find_checkpoint(True)


def test_the_processor_makes_of_an_image_what_was_measured(make: Any, photographs: Path) -> None:
    tuning = make("classification", max_steps=1)
    tuning.run()
    processor = AutoImageProcessor.from_pretrained(tuning.folder)
    model = AutoModelForImageClassification.from_pretrained(tuning.folder)
    split = tuning.splits[1]
    ours = tuning.trainer.collate.pixel_values([split[0]])
    theirs = processor(Image.open(photographs / "test" / "000.png"), return_tensors="pt")["pixel_values"]
    assert (ours - theirs).abs().mean() < 0.01  # Pillow's bicubic filter and torchvision's
    assert (model(ours).logits - model(theirs).logits).abs().max() < 0.02


def test_random_weights_are_trained_for_comparison(make: Any) -> None:
    tuning = make("segmentation", random_floor=True, max_steps=2)
    entry = tuning.run()["finetuned_segmentation"]
    floors = entry["details"]["floors"]["mean_iou"]
    assert floors.keys() == {"constant", "random_weights"}
    assert floors["random_weights"] != entry["mean_iou"]
    assert not (tuning.folder / "random_weights").exists()


def test_a_push_that_cannot_succeed_is_refused_before_the_training_and_one_that_fails_leaves_the_folder(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, photographs: Path
) -> None:
    def refuse(repo: str, token: str | None) -> None:
        raise PublishError(f"the token {token} may not write to {repo}")

    tuning = make("classification", max_steps=1, push_to_hub=True, hub_model_id="me/tuned", hub_token="hf_secret")
    monkeypatch.setattr(finetune, "check_write_access", refuse)
    with pytest.raises(PublishError, match="may not write to me/tuned"):
        tuning.run()
    assert tuning.trainer.state.global_step == 0
    monkeypatch.setattr(finetune, "check_write_access", lambda repo, token: repo)
    monkeypatch.setattr(finetune, "publish", lambda folder, repo, private, token: refuse(repo, "of today"))
    results = tuning.run()["finetuned_classification"]
    assert "`geossl publish" in caplog.text
    assert tuning.publication is None
    _, _, again = measure_folder(tuning.folder, LabelledDataset(str(photographs)), device="cpu")
    assert again["accuracy"] == results["accuracy"]
    assert not [file for file in tuning.folder.rglob("*") if file.is_file() and b"hf_secret" in file.read_bytes()]
