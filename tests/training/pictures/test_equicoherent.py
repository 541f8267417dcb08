"""The picture of EquiCoherent: its panels are the rendered path and the model's reconstructions, its numbers their errors."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from hf_geossl import EquiCoherentForPreTraining
from hf_geossl.cli.main import main
from hf_geossl.training.pictures.equicoherent import (
    ReconstructionRow,
    draw_reconstructions,
    find_reconstructions,
    reconstruction_picture,
    within_file_size,
)
from tests.helpers.equicoherent_run import make_trainer, small_config, small_views
from tests.helpers.exact_resume import different_weights

HOSTS = [
    {"host": "ibot"},
    {"split": "logits", "num_prototypes": 36},
    {"host": "dinov2", "centering": "sinkhorn"},
    {"host": "vicreg"},
]
ENDS = [{}, {"reconstruct_final": True}, {"reconstruct_final": True, "num_intermediate": 0}]


@pytest.fixture
def images(smooth_images: Any) -> Any:
    return smooth_images


def _model(**fields: Any) -> EquiCoherentForPreTraining:
    """A model whose reconstructions differ from image to image."""
    torch.manual_seed(0)
    model = EquiCoherentForPreTraining(small_config(**fields))
    if model.reconstruction is not None:
        with torch.no_grad():
            for parameter in model.reconstruction.parameters():
                parameter.normal_(std=0.15)
    return model


def _batch(views: Any, images: Any, count: int = 5) -> dict[str, torch.Tensor]:
    return views.collate([views(sample["image"], seed=7 + i) for i, sample in enumerate(images[:count])])


@pytest.mark.parametrize("fields", [*HOSTS, *ENDS[1:]])
def test_rows_are_the_rendered_path_and_what_the_model_makes_of_it(fields: dict[str, Any], images: Any) -> None:
    """Pixels of `render_path`, reconstructions of the whole forward pass without masks, errors by numpy."""
    model = _model(**fields)
    views = small_views(model.config, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    batch = _batch(views, images)
    rows = find_reconstructions(model, views, batch, seed=3)
    inputs = views.render_path(batch, torch.Generator().manual_seed(3))
    source, pairs = inputs.pop("source_pixel_values"), inputs["global_pixel_values"]
    between, final = inputs["intermediate_pixel_values"], model.config.reconstruct_final
    if inputs["bool_masked_pos"] is not None:
        assert inputs["bool_masked_pos"].any()
        inputs["bool_masked_pos"] = torch.zeros_like(inputs["bool_masked_pos"])
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    targets = [*(between.unbind(1) if between is not None else []), *([pairs[:, 1]] if final else [])]
    assert len(rows) == 5
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (views.mean, views.std))

    def pixels(normalised: torch.Tensor) -> np.ndarray:
        return np.rint(np.clip(normalised.numpy().astype(np.float64) * std + mean, 0, 1) * 255)

    def same(shown: torch.Tensor, normalised: torch.Tensor) -> bool:
        assert shown.dtype == torch.uint8
        return bool(np.abs(shown.numpy() - pixels(normalised)).max() <= 1)  # a rounding

    for index, row in enumerate(rows):
        assert same(row.first, pairs[index, 0])
        assert same(row.source, source[index])
        assert same(row.final, pairs[index, 1])
        assert len(row.true) == len(row.reconstructed) == len(row.errors) == len(targets) == model.config.num_decoders
        for point, target in enumerate(targets):
            found, expected = outputs.reconstructions[index, point], target[index]
            assert same(row.true[point], expected)
            assert same(row.reconstructed[point], found)
            assert row.errors[point] == pytest.approx(((found - expected).numpy() ** 2).mean(), rel=1e-4)
            baseline = ((target.numpy().mean(axis=0) - expected.numpy()) ** 2).mean()
            assert row.mean_image_errors[point] == pytest.approx(baseline, rel=1e-4)
    assert rows[0].reconstructed.float().std() > 5  # they show something
    assert np.mean([row.errors for row in rows]) == pytest.approx(outputs.reconstruction_loss.item(), rel=1e-4)
    assert np.mean([row.mean_image_errors for row in rows]) == pytest.approx(
        outputs.components["mean_image_loss"].item(), rel=1e-4
    )


def _row(points: int, final: bool, index: int) -> ReconstructionRow:
    def plain(value: int) -> torch.Tensor:
        return torch.full((3, 8, 8), value + index, dtype=torch.uint8)

    shown = points + int(final)
    return ReconstructionRow(
        plain(10),
        plain(20),
        plain(30),
        torch.stack([plain(100 + 5 * point) for point in range(shown)]),
        torch.stack([plain(180 + 5 * point) for point in range(shown)]),
        [0.01 * (point + 1) + index for point in range(shown)],
        [0.5 + 0.01 * point + index for point in range(shown)],
    )


@pytest.mark.parametrize(
    ("points", "final", "chosen", "side"),
    [(2, False, [0, 1], 160), (3, True, [0, 1, 2], 128), (9, True, [0, 2, 3, 5, 6, 8], 128), (0, True, [], 160)],
)
def test_panels_titles_and_errors_stand_where_they_belong(
    points: int, final: bool, chosen: list[int], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five plain images in shades that tell which panel is which; four are drawn, all five measured."""
    written: dict[tuple[float, float], str] = {}
    boxes: list[tuple[float, float, float, float]] = []
    write = ImageDraw.ImageDraw.text

    def note(self: Any, xy: tuple[float, float], text: str, *args: Any, **kwargs: Any) -> None:
        written[xy] = text
        boxes.append(self.textbbox(xy, text, font=kwargs["font"]))
        write(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    rows = [_row(points, final, index) for index in range(5)]
    picture = draw_reconstructions(rows, points, "rotation", "the title")
    assert picture.width <= 1600
    assert all(box[2] <= picture.width and box[3] <= picture.height for box in boxes)  # nothing is cut
    for i, first in enumerate(boxes):
        for second in boxes[i + 1 :]:
            apart = first[2] <= second[0] or second[2] <= first[0] or first[3] <= second[1] or second[3] <= first[1]
            assert apart, (first, second)
    columns = [8 + column * (side + 8) for column in range(len(chosen) + 3)]
    top = 8 + 3 * 22 + 8
    pixels = np.array(picture)
    for index in range(4):
        y = top + index * (2 * (side + 8) + 52)
        shades = [10, 20, *(100 + 5 * point for point in chosen), 30]
        for x, shade in zip(columns, shades, strict=True):
            assert (pixels[y : y + side, x : x + side] == shade + index).all()
        below = [None, None, *chosen, points if final else None]
        for x, point in zip(columns, below, strict=True):
            area = pixels[y + side + 8 : y + 2 * side + 8, x : x + side]
            if point is None:
                assert (area > 200).mean() > 0.8  # empty but for a label
                continue
            assert (area == 180 + 5 * point + index).all()
            assert written[x, y + 2 * side + 10] == f"error {0.01 * (point + 1) + index:.2f}"
            assert written[x, y + 2 * side + 32] == f"mean image {0.5 + 0.01 * point + index:.2f}"
    titles = [written[x, 34] for x in columns]
    assert titles == ["view v1", "image u", *(f"{p + 1}/{points + 1} of the way" for p in chosen), "view v2"]
    assert written[columns[-1], 56] == "u turned"
    shown = points + int(final)
    measured = re.search(r"All 5 images: error ([\d.]+), mean image ([\d.]+)\.", " ".join(written.values()))
    assert measured is not None
    assert float(measured[1]) == pytest.approx(np.mean([0.01 * (p + 1) for p in range(shown)]) + 2, abs=0.0051)
    assert float(measured[2]) == pytest.approx(np.mean([0.5 + 0.01 * p for p in range(shown)]) + 2, abs=0.0051)


@pytest.mark.parametrize("fields", [{"drop_path_rate": 0.5}, {"host": "simclr"}])
def test_drawing_leaves_model_and_random_numbers_as_they_are(fields: dict[str, Any], images: Any) -> None:
    """Also a module that alone was in evaluation mode; and the same seed draws the same."""
    model = _model(**fields)
    views = small_views(model.config)
    model.train()
    model.equicoherent.embeddings.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    shown = [sample["image"] for sample in images[:3]]
    picture = reconstruction_picture(model, views, shown, seed=1)
    assert torch.equal(drawn, torch.get_rng_state())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model._accumulated == {}
    assert reconstruction_picture(model, views, shown, seed=1).tobytes() == picture.tobytes()
    assert reconstruction_picture(model, views, shown, seed=2).tobytes() != picture.tobytes()


def test_what_cannot_be_drawn_is_refused(images: Any) -> None:
    model = _model(reconstruction_weight=0.0)
    views = small_views(model.config)
    with pytest.raises(ValueError, match="must reconstruct something, got one without decoders"):
        find_reconstructions(model, views, _batch(views, images))
    with pytest.raises(ValueError, match="two images or more, or their mean is no baseline; got 1"):
        find_reconstructions(_model(), views, _batch(views, images, 1))


def test_large_pictures_lose_colors_not_their_look() -> None:
    """A ramp with noise, as photographs have it; what is small stays as it is."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 700)[None, :, None] + np.array([0, 20, 40]) + np.zeros((600, 1, 1))
    noisy = Image.fromarray((ramp + generator.integers(0, 12, (600, 700, 3))).astype(np.uint8))
    reduced = within_file_size(noisy)
    assert reduced.mode == "P"
    found, expected = (np.array(picture.convert("RGB")).astype(float) for picture in (reduced, noisy))
    blocks = [picture.reshape(30, 20, 35, 20, 3).mean(axis=(1, 3)) for picture in (found, expected)]
    assert np.abs(blocks[0] - blocks[1]).max() < 4
    small = Image.fromarray(ramp.astype(np.uint8))
    assert within_file_size(small) is small


def test_run_leaves_the_picture_and_a_resumed_one_draws_the_same(images: Any, tmp_path: Path) -> None:
    """Of held-out images; the run itself goes as it does without pictures."""
    settings: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "config": {"num_register_tokens": 2}}
    quiet = make_trainer(tmp_path / "quiet", images, **settings)
    quiet.train()
    quiet.save_model()
    assert not (tmp_path / "quiet" / "reconstructions.png").exists()
    assert "reconstructions.png" not in (tmp_path / "quiet" / "README.md").read_text()
    run = tmp_path / "run"
    trainer = make_trainer(run, images, picture=True, eval_dataset=images[10:13], **settings)
    trainer.train()
    assert different_weights(quiet.model, trainer.model) == []
    trainer.save_model()
    card = (run / "README.md").read_text()
    assert "`(batch, 1 + 2 registers + patches, 32)`, class token first, then the registers;" in card
    assert card.count("(reconstructions.png)") == 1
    drawn = (run / "reconstructions.png").read_bytes()
    assert len(drawn) < 400_000
    samples = list(trainer.eval_dataset.one_epoch())
    views = trainer.views
    batch = views.collate([views(sample["image"], seed=sample["seed"]) for sample in samples])
    rows = find_reconstructions(trainer.model, views, batch)
    title = "Intermediate images between u and v2, reconstructed after 4 steps (held-out images)"
    expected = draw_reconstructions(rows, 2, "se2", title)
    with Image.open(run / "reconstructions.png") as picture:
        assert np.array_equal(np.array(picture.convert("RGB")), np.array(expected))
    (run / "reconstructions.png").unlink()
    resumed = make_trainer(run, images, picture=True, **settings)  # its eval_dataset is gone, the crops are kept
    resumed.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    resumed.save_model()
    assert (run / "reconstructions.png").read_bytes() == drawn


@pytest.mark.parametrize("fields", [{"reconstruction_weight": 0.0}, {"transformation": None}, {"num_intermediate": 0}])
def test_nothing_is_drawn_where_nothing_is_reconstructed(fields: dict[str, Any], images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, picture=True, max_steps=1, config=fields)
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "features.png").is_file()
    assert not (tmp_path / "reconstructions.png").exists()
    card = (tmp_path / "README.md").read_text()
    assert "reconstructions.png" not in card
    assert "`(batch, 1 + patches, 32)`, class token first; `outputs.pooler_output`" in card


def test_batches_of_one_image_are_not_drawn_and_it_is_said(
    images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path, images, picture=True, max_steps=1, per_device_train_batch_size=1)
    with caplog.at_level(logging.WARNING, logger="hf_geossl.training.pictures.equicoherent"):
        trainer.train()
    assert "reconstructions.png is not drawn: it takes two images" in caplog.text
    assert not (tmp_path / "reconstructions.png").exists()


def test_command_line_says_where_the_picture_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    small = {
        "method": "equicoherent", "output_dir": str(run), "dataset": "scenes", "dataset_config": "scene-48",
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        "patch_features": 48, "head_hidden_size": 32, "head_bottleneck_size": 16, "num_prototypes": 32,
        "global_size": 32, "local_size": 16, "num_local": 1, "per_device_train_batch_size": 4, "max_steps": 1,
        "shuffle_block": 8, "use_cpu": True, "disable_tqdm": True, "dataloader_num_workers": 0,
    }  # fmt: skip
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    assert main(["pretrain", str(tmp_path / "small.yaml")]) == 0
    assert f"Intermediate images, reconstructed: {run / 'reconstructions.png'}" in capsys.readouterr().out
    assert (run / "reconstructions.png").is_file()
