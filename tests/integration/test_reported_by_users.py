"""What users of peer projects have reported, tried here from the command line or through the libraries that they use."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

from hf_geossl import GTSAConfig, GTSAForImageClassification
from hf_geossl.cli.main import main
from hf_geossl.hub.export import make_image_processor

TINY = [
    "--dataloader_num_workers",
    "0",
    "--hidden_size",
    "16",
    "--num_attention_heads",
    "2",
    "--num_hidden_layers",
    "1",
    "--disable_tqdm",
    "true",
    "--logging_steps",
    "1",
    "--picture",
    "false",
]
# of EquiCoherent: its quickstart's host compares the images of a batch
BATCHES_OF_ONE = [
    "--host",
    "ibot",
    "--num_prototypes",
    "128",
    "--num_local",
    "2",
    "--local_size",
    "24",
    "--patch_features",
    "none",
    "--equivariant_features",
    "none",
]
QUICKSTARTS = ("quickstart", "loca_quickstart", "equicoherent_quickstart")


def write(folder: Path, count: int, size: tuple[int, int] = (70, 60), ending: str = "jpg") -> Path:
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{ending}")
    return folder


def pretrain(recipe: str, data: Path, run: Path, *words: object) -> int:
    more = BATCHES_OF_ONE if recipe.startswith("equi") else []
    argv = ["pretrain", recipe, "--dataset", str(data), "--output_dir", str(run), *TINY, *more, *map(str, words)]
    return int(main(argv) or 0)


@pytest.mark.parametrize("recipe", QUICKSTARTS)
def test_one_image_in_batches_of_one(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dataset of one image with a capital ending, without any argument for the recipe's own data."""
    data = write(tmp_path / "one", 1, ending="JPG")
    assert pretrain(recipe, data, tmp_path / "run", "--max_steps", 2, "--per_device_train_batch_size", 1) == 0
    captured = capsys.readouterr()
    assert "nan" not in captured.out
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert f"so {recipe}'s dataset_config=" in captured.err


def test_images_of_one_pixel_and_long_strips(tmp_path: Path) -> None:
    write(tmp_path / "odd", 1, (1, 1), "png")
    write(tmp_path / "odd/b b ü", 1, (1500, 1), "png")
    assert (
        pretrain("quickstart", tmp_path / "odd", tmp_path / "run", "--max_steps", 1, "--per_device_train_batch_size", 2)
        == 0
    )


def test_epochs_of_a_counted_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two epochs of 6 images in batches of 2 are 6 steps; what a recipe says of the length yields, and is said."""
    data = write(tmp_path / "six", 6)
    assert (
        pretrain("quickstart", data, tmp_path / "run", "--num_train_epochs", 2, "--per_device_train_batch_size", 2) == 0
    )
    captured = capsys.readouterr()
    assert " 6 steps of 2 images" in captured.out
    assert "--num_train_epochs is given, so quickstart's max_steps=300 is left out" in captured.err


def test_going_on_from_a_moved_copy_and_not_with_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = write(tmp_path / "data", 6), tmp_path / "run"
    batch, resume = ("--per_device_train_batch_size", 2, "--save_steps", 2), ("--resume_from_checkpoint", "true")
    assert pretrain("quickstart", data, run, "--max_steps", 2, *batch) == 0
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    assert pretrain("quickstart", moved, run, "--max_steps", 4, *batch, *resume) == 0
    capsys.readouterr()
    other = ("--per_device_train_batch_size", 1, "--save_steps", 2)
    assert pretrain("quickstart", moved, run, "--max_steps", 6, *other, *resume) == 2
    assert "batch_size" in capsys.readouterr().err
    write(moved / "new", 1)
    assert pretrain("quickstart", moved, run, "--max_steps", 6, *batch, *resume) == 2
    assert "files was 6 and is 7" in capsys.readouterr().err


def classifier(folder: Path) -> Path:
    config = GTSAConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, num_labels=3
    )
    torch.manual_seed(0)
    GTSAForImageClassification(config).save_pretrained(folder)
    make_image_processor((32, 32)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("targets", [["qkv"], ["fc1", "fc2", "projection"], "all-linear"])
def test_adapters_get_gradients_are_saved_and_merged(targets: Any, tmp_path: Path) -> None:
    base = classifier(tmp_path / "base")
    settings = peft.LoraConfig(r=4, target_modules=targets, modules_to_save=["classifier"], init_lora_weights=False)
    adapted = peft.get_peft_model(AutoModelForImageClassification.from_pretrained(base), settings).eval()
    pixels = torch.randn(2, 3, 32, 32)
    adapted(pixels, labels=torch.tensor([0, 1])).loss.backward()
    trained = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None or not gradient.any()] == []
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(
        AutoModelForImageClassification.from_pretrained(base), tmp_path / "adapter"
    ).eval()
    with torch.no_grad():
        expected = adapted(pixels).logits
        torch.testing.assert_close(again(pixels).logits, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(again.merge_and_unload().eval()(pixels).logits, expected, atol=1e-5, rtol=0)


def test_a_plain_trainer_with_gradient_checkpointing(tmp_path: Path) -> None:
    base = classifier(tmp_path / "base")
    processor = AutoImageProcessor.from_pretrained(base)
    pictures = [Image.open(path) for path in sorted(write(tmp_path / "photos", 6).iterdir())]
    rows = [
        {"pixel_values": processor(picture, return_tensors="pt")["pixel_values"][0], "labels": number % 3}
        for number, picture in enumerate(pictures)
    ]
    losses = []
    for checkpointing in (True, False):
        args = TrainingArguments(
            str(tmp_path / "fit"), max_steps=3, per_device_train_batch_size=2, report_to="none", use_cpu=True, seed=0,
            disable_tqdm=True, gradient_checkpointing=checkpointing, save_strategy="no",
        )  # fmt: skip
        model = AutoModelForImageClassification.from_pretrained(base)
        losses.append(Trainer(model, args, train_dataset=rows).train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
