"""The scripts of examples/ compute what the library's own models compute, run, and are short enough to be read."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hf_geossl import (
    EquiCoherentForPreTraining,
    EquiCoherentViews,
    GTSAForPreTraining,
    GTSAViews,
    LOCAForPreTraining,
    LOCAViews,
    load_scenes,
)
from tests.helpers.golden import ROOT
from tests.helpers.photographs import write_folder

METHODS = ("gtsa", "loca", "equicoherent")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def views_of(views: Any, count: int = 3) -> dict[str, torch.Tensor]:
    images = load_scenes("train", 64, count)
    batch = views.collate([views(row["image"], seed=seed) for seed, row in enumerate(images)])
    return views.augment(batch, torch.Generator().manual_seed(0))


def check_losses(model: Any, batch: dict[str, torch.Tensor], parts: dict[str, torch.Tensor], names: dict) -> None:
    """Losses and the trunk's gradient are those of the library's model."""
    torch.manual_seed(1)
    outputs = model(**batch)
    for name, value in parts.items():
        torch.testing.assert_close(value, outputs[names.get(name, f"{name}_loss")], rtol=1e-5, atol=1e-6)
    outputs.loss.backward()
    expected = next(model.base_model.parameters()).grad
    model.zero_grad()
    parts["loss"].backward()
    assert expected is not None
    torch.testing.assert_close(next(model.base_model.parameters()).grad, expected, rtol=1e-4, atol=1e-6)


def test_gtsa_is_the_librarys() -> None:
    example = load("gtsa")
    torch.manual_seed(0)
    model = GTSAForPreTraining(example.CONFIG).train()
    of = {"trunk": "gtsa", "projector": "projector", "predictor": "predictor", "rotation": "rotation_head"}
    student = torch.nn.ModuleDict({name: model.get_submodule(path) for name, path in of.items()})
    teacher = torch.nn.ModuleDict({"trunk": model.teacher.gtsa, "projector": model.teacher.projector})
    batch = views_of(GTSAViews(global_size=48, local_size=24, num_local=2))
    check_losses(model, batch, example.losses(student, teacher, batch), {"loss": "loss"})


def test_loca_is_the_librarys() -> None:
    example = load("loca")
    torch.manual_seed(0)
    model = LOCAForPreTraining(example.CONFIG).train()
    heads = ("cluster_head", "cross_attention", "final_norm", "position_predictor")
    student, teacher = (
        torch.nn.ModuleDict({"trunk": side.loca, **{name: side.get_submodule(name) for name in heads}})
        for side in (model, model.teacher)
    )
    batch = views_of(LOCAViews(reference_size=48, focal_size=24, num_focal=2, patch_size=8))
    torch.manual_seed(2)
    parts = example.losses(student, teacher, batch)
    torch.manual_seed(2)
    kept = torch.randperm(batch["random_query_positions"].shape[1])[: example.CONFIG.num_kept_query_tokens]
    check_losses(model, batch | {"kept_query_tokens": kept}, parts, {"loss": "loss", "found": "location_accuracy"})


def test_equicoherent_is_the_librarys() -> None:
    example = load("equicoherent")
    torch.manual_seed(0)
    model = EquiCoherentForPreTraining(example.CONFIG).train()
    student = torch.nn.ModuleDict(
        {
            "trunk": model.equicoherent,
            "split": model.split_head,
            "projector": model.head,
            "decoders": model.reconstruction.decoders,  # type: ignore[union-attr]
        }
    )
    views = EquiCoherentViews(host="simclr", transformation="se2", num_intermediate=2, global_size=48, patch_size=8)
    batch = views_of(views)
    check_losses(model, batch, example.losses(student, batch), {"loss": "loss"})


@pytest.mark.parametrize("name", METHODS)
def test_it_runs_on_a_folder_and_is_short(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) <= 130
    images = write_folder(tmp_path / "images", 8)
    words = ["--images", str(images), "--steps", "2", "--batch", "4", "--probe_images", "16"]
    monkeypatch.setattr(sys, "argv", [name, *words])
    load(name).main()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[1:3]] == ["step 0", "step 1"]
    assert " before" in printed[0]
    assert " after" in printed[-1]
    assert "nan" not in "".join(printed)
