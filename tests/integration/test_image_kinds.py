"""Images of 1, 5 and 13 channels in 8 and 16 bits and floating point, from files to a published model and its numbers."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, TrainerCallback

from hf_geossl import evaluate_model, load_stream, publish
from hf_geossl.methods import METHODS
from hf_geossl.modeling.image_format import ImageFormat
from tests.helpers.exact_resume import different_weights

SIDE, IMAGES, STEPS = 40, 8, 4
TRUNK = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
MODELS: dict[str, dict[str, Any]] = {
    "gtsa": {
        "reconstruction": "color",
        "projector_hidden_size": 16,
        "projection_size": 8,
        "predictor_hidden_size": 16,
        "rotation_hidden_sizes": [16],
    },
    "loca": {"reconstruction": "blur", "num_prototypes": 8, "head_hidden_size": 16, "head_bottleneck_size": 8},
    "equicoherent": {
        "transformation": "color",
        "patch_features": 16,
        "num_prototypes": 8,
        "head_hidden_size": 16,
        "head_bottleneck_size": 8,
    },
}
VIEWS: dict[str, dict[str, Any]] = {
    "gtsa": {"global_size": 32, "local_size": 16, "num_local": 2, "reconstruction": "color"},
    "loca": {"reference_size": 32, "focal_size": 16, "num_focal": 2, "patch_size": 8, "reconstruction": "blur"},
    "equicoherent": {"global_size": 32, "local_size": 16, "num_local": 2, "patch_size": 8, "transformation": "color"},
}
# stored type -> the values that become 0 and 1: those of 12 bits in 16, and a range that the images leave on both sides
RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 4095.0), "float32": (-2.0, 2.0)}


def write_images(folder: Path, channels: int, dtype: str) -> tuple[Path, ImageFormat]:
    """Smooth images whose channels differ in brightness, as `.npy`, and their format with measured mean and deviation."""
    generator, (low, high) = np.random.default_rng(0), RANGES[dtype]
    units = []
    for index in range(IMAGES):
        coarse = generator.normal(0.5, 0.2, (5, 5, channels)) + np.linspace(-0.1, 0.1, channels)
        unit = np.kron(coarse, np.ones((SIDE // 5, SIDE // 5, 1)))
        values = unit * (high - low) + low
        stored = values if dtype == "float32" else np.clip(np.round(values), low, high)
        for split in ("train", "test"):
            place = folder / split / ("odd" if index % 2 else "even")
            place.mkdir(parents=True, exist_ok=True)
            np.save(place / f"{index}.npy", stored.astype(dtype))
        units.append((stored - low) / (high - low))
    pixels = np.concatenate(units)
    image_format = ImageFormat(
        tuple(range(1, channels + 1)),
        tuple(f"channel {number}" for number in range(1, channels + 1)),
        dtype,
        (RANGES[dtype],),
        "given",
        tuple(pixels.mean(axis=(0, 1)).tolist()),
        tuple(pixels.std(axis=(0, 1)).tolist()),
    )
    return folder, image_format


class Kill(TrainerCallback):
    """Kills the process in step 4, which nothing of Python sees; the checkpoint is of step 2."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def make_trainer(method: str, data: Path, image_format: ImageFormat, run: Path, **kwargs: Any) -> Any:
    row = METHODS[method]
    torch.manual_seed(0)
    config = row.load("config")(**TRUNK, **MODELS[method], num_channels=image_format.num_channels)
    arguments = row.load("arguments")(
        output_dir=str(run),
        max_steps=STEPS,
        save_steps=2,
        logging_steps=1,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    stream = load_stream(data, seed=0)
    views = row.load("views")(**VIEWS[method], image_format=image_format)
    return row.load("trainer")(row.load("pretraining")(config), arguments, stream, stream, views=views, **kwargs)


def train_killed(method: str, data: Path, image_format: ImageFormat, run: Path) -> None:
    make_trainer(method, data, image_format, run, callbacks=[Kill()]).train()


# each method meets each number of channels and each type
GRID = [
    (list(MODELS)[(row + column) % 3], channels, dtype)
    for row, channels in enumerate((1, 5, 13))
    for column, dtype in enumerate(RANGES)
]


@pytest.mark.parametrize(("method", "channels", "dtype"), GRID)
def test_images_of_any_kind_from_files_to_published_numbers(
    method: str, channels: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # the folder of remote code is added to it
    data, image_format = write_images(tmp_path / "images", channels, dtype)
    whole = make_trainer(method, data, image_format, tmp_path / "whole")
    whole.train()
    # a server that has run no backward pass: autograd's threads do not survive a fork
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_geossl.training.trainer_gtsa", "hf_geossl.training.trainer_loca"])
    process = context.Process(target=train_killed, args=(method, data, image_format, tmp_path / "killed"))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    resumed = make_trainer(method, data, image_format, tmp_path / "killed")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == STEPS
    assert different_weights(whole.model, resumed.model) == []
    losses = [[entry.get("loss") for entry in run.state.log_history if "loss" in entry] for run in (whole, resumed)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS
    assert np.isfinite(losses[0]).all()
    assert np.isfinite(whole.evaluate()["eval_loss"])
    whole.save_model()
    for picture in METHODS[method].pictures:
        assert (tmp_path / "whole" / picture.load().file).is_file()
    config = AutoConfig.from_pretrained(tmp_path / "whole")
    assert ImageFormat.from_dict(config.image_format) == image_format
    trunk = AutoModel.from_pretrained(tmp_path / "whole").eval()
    network = whole.model if whole.model.teacher is None else whole.model.teacher
    inside = getattr(network, whole.model.base_model_prefix).eval()
    stored = np.load(data / "train" / "even" / "0.npy")
    pixels = torch.from_numpy(image_format.to_unit(stored)).permute(2, 0, 1)[None]
    pixels = F.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (image_format.mean, image_format.std))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "whole", trust_remote_code=True)
    pixel_values = processor(stored, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values, (pixels - mean) / std, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(trunk(pixel_values).last_hidden_state, inside(pixel_values).last_hidden_state)
    plan = publish(tmp_path / "whole", "user/bands", dry_run=True)
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= {
        file.path for file in plan.files
    }
    assert image_format.describe().split(";")[0] in (tmp_path / "whole" / "README.md").read_text()
    results = evaluate_model(
        tmp_path / "whole", ["linear"], str(data), image_size=32, cache_dir=None, bootstrap=0, progress=False
    )
    assert results["about"]["images"] == IMAGES
    assert results["linear"]["accuracy"] >= 7 / 8  # of the eight images that the classifier was fitted to
