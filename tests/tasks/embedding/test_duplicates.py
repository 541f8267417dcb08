"""Planted copies are found whatever the trunk has learnt, and hardly anything else."""

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers import BitImageProcessor

from hf_geossl.data import scene_image
from hf_geossl.tasks import embed
from hf_geossl.tasks.embedding.arguments import EmbeddingArguments
from hf_geossl.tasks.embedding.duplicates import describe_duplicates, draw_duplicates, find_duplicates
from tests.helpers.embedding_models import foreign_folder, own_folder
from tests.helpers.images import write_parquet

SCENES, PLANTED = 120, 60


def plant(root):
    """Scenes, and of some of them copies that were resized, recompressed or both, and mirrored ones, which are none."""
    root.mkdir()
    draw = np.random.default_rng(0)
    for number in range(SCENES):
        scene_image("train", number, "scene-64" if number % 2 else "topdown-64").save(root / f"{number:03d}.png")
    for turn in range(PLANTED):
        image = Image.open(root / f"{2 * turn:03d}.png")
        ImageOps.mirror(image).save(root / f"{2 * turn:03d}_mirrored.png")
        if turn % 3:
            scale = draw.uniform(0.5, 2)
            image = image.resize((round(64 * scale), round(64 * scale)), Image.Resampling.BICUBIC)
        ending, options = ("png", {}) if turn % 3 == 1 else ("jpg", {"quality": int(draw.integers(30, 95))})
        image.save(root / f"{2 * turn:03d}_copy.{ending}", **options)
    return root


def test_planted_copies_are_found_by_a_random_trunk(tmp_path):
    model = own_folder(tmp_path / "model")
    made = embed(model, plant(tmp_path / "data"), tmp_path / "out.parquet", EmbeddingArguments(num_workers=0))
    table = find_duplicates(made)
    planted = [
        (a[:3] == b[:3]) and "mirrored" not in a + b for a, b in zip(table["key"], table["copy_of"], strict=True)
    ]
    assert sum(planted) >= 0.99 * PLANTED
    assert len(planted) - sum(planted) <= 0.01 * len(planted)
    assert table["group"].tolist() == sorted(table["group"])
    assert (table["similarity"] > 0.9).all()
    sheet = draw_duplicates(made, table)
    assert sheet.width > 4 * 128
    assert sheet.height > 12 * 128


def test_stretched_copies_are_found_by_a_model_that_is_shown_the_middle(tmp_path):
    """DINOv2's, CLIP's and timm's processors scale the shorter side and cut the middle out: another one of each copy."""
    model, data = foreign_folder(tmp_path / "model"), tmp_path / "data"
    BitImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}).save_pretrained(model)
    data.mkdir()
    draw = np.random.default_rng(0)
    for number in range(16):  # coarse textures
        image = Image.fromarray(draw.integers(0, 256, (12, 18, 3), dtype=np.uint8)).resize((90, 60))
        image.save(data / f"{number:02d}.png")
        image.resize((106, 60)).save(data / f"{number:02d}_copy.png")
    made = embed(model, data, tmp_path / "out.parquet", EmbeddingArguments(num_workers=0))
    table = find_duplicates(made)
    assert table["key"].tolist() == [f"{number:02d}_copy.png" for number in range(16)]
    assert [key[:2] for key in table["copy_of"]] == [f"{number:02d}" for number in range(16)]


def test_equal_images_are_one_group_and_none_is_a_table_too(tmp_path):
    model = own_folder(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for number, side in enumerate((40, 40, 90)):
        scene_image("train", 0, "scene-64").resize((side, side)).save(tmp_path / f"data/{number}.png")
    arguments = EmbeddingArguments(num_workers=0, features=("patches",))
    table = find_duplicates(embed(model, tmp_path / "data", tmp_path / "out.parquet", arguments))
    assert table[["group", "key"]].values.tolist() == [[1, "1.png"], [1, "2.png"]]
    assert table["difference"][0] == 0
    assert "similarity" not in table
    made = embed(model, write_parquet(tmp_path / "noise", rows=8), tmp_path / "noise.parquet", arguments)
    none = find_duplicates(made)
    assert len(none) == 0
    draw_duplicates(made, none)


def test_images_without_content_are_copies_only_of_equal_pixels(tmp_path):
    model, data = own_folder(tmp_path / "model"), tmp_path / "data"
    data.mkdir()
    draw = np.random.default_rng(0)
    for number in range(6):
        pixels = np.full((64, 64, 3), 235) + draw.integers(-1, 2, (64, 64, 1))
        Image.fromarray(pixels.astype(np.uint8)).save(data / f"{number}.png")
        Image.new("RGB", (64, 64), (250, 250, 250 - number // 3)).save(data / f"blank_{number}.png")
    made = embed(model, data, tmp_path / "out.parquet", EmbeddingArguments(num_workers=0))
    table = find_duplicates(made)
    pairs = [
        (copy, original.removeprefix("blank_")) for copy, original in zip(table["key"], table["copy_of"], strict=True)
    ]
    assert pairs == [
        ("blank_1.png", "0.png"),
        ("blank_2.png", "0.png"),
        ("blank_4.png", "3.png"),
        ("blank_5.png", "3.png"),
    ]
    assert describe_duplicates(table, made.rows) == [
        "12 images of one colour, or without anything that stands out of noise, are a duplicate only where all pixels are equal",
        "4 near-duplicates of 12 rows",
    ]


def test_tiles_of_a_stream_are_compared_too(tmp_path):
    model = own_folder(tmp_path / "model")
    (tmp_path / "data").mkdir()
    scene = scene_image("train", 0, "scene-64")
    twice = Image.new("RGB", (128, 64))
    twice.paste(scene, (0, 0))
    twice.paste(scene, (64, 0))
    twice.save(tmp_path / "data/twice.png")
    made = embed(model, tmp_path / "data", tmp_path / "out.parquet", EmbeddingArguments(num_workers=0, tile=64))
    table = find_duplicates(made)
    assert table.drop(columns=["difference", "similarity"]).values.tolist() == [
        [1, "twice.png", 64, 0, 128, 64, "twice.png", 0, 0, 64, 64]
    ]
    assert table["similarity"][0] == pytest.approx(1)
