"""What a run reads of images, from its arguments and the images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hf_geossl.cli.arguments import DataArguments
from hf_geossl.cli.image_arguments import joined, resolve_images
from hf_geossl.cli.pretrain_arguments import Pretraining, parse_pretrain
from hf_geossl.cli.pretrain_model import make_config, make_views
from hf_geossl.cli.usage import UsageError
from hf_geossl.data.streams import ImageStream, load_stream
from hf_geossl.methods import METHODS
from hf_geossl.modeling.image_format import ImageFormat

QUICKSTARTS = ["quickstart", "loca_quickstart", "equicoherent_quickstart"]


def folder_of(root: Path, pixels: np.ndarray, count: int = 3) -> str:
    root.mkdir(exist_ok=True)
    for index in range(count):
        if pixels.shape[-1] == 1:
            tifffile.imwrite(root / f"{index}.tif", pixels[..., 0], photometric="minisblack")
            continue
        photometric = "rgb" if pixels.shape[-1] == 3 else "minisblack"
        tifffile.imwrite(root / f"{index}.tif", pixels, photometric=photometric, planarconfig="contig")
    return str(root)


def ramp(dtype: str, high: float, channels: int) -> np.ndarray:
    return (np.linspace(0, high, 100 * channels)).reshape(10, 10, channels).astype(dtype)


def resolved(
    words: list[str], recipe: str = "quickstart", **options: object
) -> tuple[Pretraining, ImageFormat, list[str]]:
    given = parse_pretrain([recipe, *words])
    stream = load_stream(given.data.dataset, config_name=given.data.dataset_config)
    return given, *resolve_images(given, stream, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", QUICKSTARTS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 5, 13])
def test_config_and_views_of_every_method_get_the_same_images(tmp_path, channels, dtype, recipe):
    dataset = folder_of(tmp_path / "data", ramp(dtype, 1 if dtype == "float32" else 200, channels))
    given, image_format, lines = resolved(["--dataset", dataset, "--channels", "all"], recipe)
    assert image_format.num_channels == channels
    assert any("the model's images" in line for line in lines)
    config = make_config(given, image_format)
    assert config.num_channels == channels
    assert config.get_image_format() == image_format
    views = make_views(given, type("Model", (), {"config": config})(), image_format)  # type: ignore[arg-type]
    assert views.image_format == image_format


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "gif", "tif"])
def test_colour_images_of_8_bits_are_not_measured_and_nothing_is_said(tmp_path, ending, monkeypatch):
    for index in range(3):
        Image.fromarray(ramp("uint8", 255, 3)).save(tmp_path / f"{index}.{ending}")
    monkeypatch.setattr("hf_geossl.data.measurement.measure_images", None)
    assert resolved(["--dataset", str(tmp_path)])[1:] == (ImageFormat(), [])


def test_scenes_are_not_measured(monkeypatch):
    monkeypatch.setattr("hf_geossl.data.measurement.measure_images", None)
    assert resolved([])[1:] == (ImageFormat(), [])


def test_twelve_bits_in_sixteen_keep_their_levels(tmp_path):
    dataset = folder_of(tmp_path / "data", ramp("uint16", 4080, 3))
    _, image_format, lines = resolved(["--dataset", dataset])
    assert (image_format.dtype, image_format.value_range, image_format.range_source) == (
        "uint16",
        ((0, 4095),),
        "bits:12",
    )
    assert lines[0].startswith("data: the measured values (uint16) go from 0 to 4080")
    _, image_format, _ = resolved(["--dataset", dataset, "--value_range", "0,65535"])
    assert (image_format.value_range, image_format.range_source) == (((0, 65535),), "given")


@pytest.mark.parametrize(
    ("words", "ranges"),
    [
        (["--value_range", "-1024,3071"], ((-1024, 3071),)),
        (["--value_range=-1024,3071"], ((-1024, 3071),)),
        (["--value-range", "0,5", "1,9"], ((0, 5), (1, 9))),
        (["--value_range", "0", "5"], ((0, 5),)),
        (["--value_range", "window:40,400"], ((-160, 240),)),
    ],
)
def test_a_range_can_be_written_in_every_way(tmp_path, words, ranges):
    dataset = folder_of(tmp_path / "data", ramp("int16", 900, 2))
    assert resolved(["--dataset", dataset, "--channels", "2", "1", *words])[1].value_range == ranges


def test_a_recipe_can_hold_all_of_it(tmp_path):
    dataset = folder_of(tmp_path / "data", ramp("uint16", 900, 5))
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        f"data:\n  dataset: {dataset}\n  channels: [4, 3]\n  value_range: [[0, 900], [-5, 10]]\n  channel_names: [a, b]\n"
        "views:\n  mean: [0.5, 0.25]\n  std: [1, 2]\n",
        encoding="utf-8",
    )
    image_format = resolved([], str(recipe))[1]
    expected = ImageFormat((4, 3), ("a", "b"), "uint16", ((0, 900), (-5, 10)), "given", (0.5, 0.25), (1.0, 2.0))
    assert image_format == expected
    assert resolved(["--channels", "1,2"], str(recipe))[1].channels == (1, 2)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--num_channels", "5"], "--num_channels 5 does not say which channels.*--channels 1,2,3,4,5"),
        (["--num_channels", "13"], "--num_channels 13 does not say which channels"),
        (["--num_channels", "1", "--channels", "2,1"], "--num_channels is 1, and --channels 2,1 gives 2"),
        (["--channels", "rgba"], "--channels must be rgb, gray, all, or numbers"),
        (["--channels", "9"], "--channels asks for channel 9, and the images have 5"),
        (["--value_range", "high"], "--value_range must be type, two numbers"),
        (["--channels", "all", "--channel_names", "a,b"], "--channel_names must name each of the 5 channels"),
        (["--channels", "all", "--mean", "0.5"], "--mean must have a number for each of the 5 channels"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(tmp_path, words, error):
    dataset = folder_of(tmp_path / "data", ramp("uint16", 900, 5))
    with pytest.raises((UsageError, ValueError), match=error):
        resolved(["--dataset", dataset, *words])


def test_one_channel_of_scenes_is_their_luminance():
    given, image_format, _ = resolved(["--num_channels", "1", "--dataset_config", "topdown-32"])
    assert image_format.channels == "gray"
    assert make_config(given, image_format).num_channels == 1
    stream = load_stream("scenes", config_name="topdown-32")
    grays = [np.asarray(sample["image"].convert("L")) / 255 for _, sample in zip(range(64), stream, strict=False)]
    assert image_format.mean[0] == pytest.approx(np.mean(grays), abs=0.03)


def test_broken_images_are_counted_beside_what_was_measured(tmp_path):
    dataset = folder_of(tmp_path / "data", ramp("uint16", 900, 3))
    (tmp_path / "data" / "bad.tif").write_bytes(b"II*\0 nothing")
    lines = resolved(["--dataset", dataset])[2]
    assert lines[0].startswith("data: 1 of 4 measured images cannot be used, such as bad.tif: ")


def test_the_model_that_a_run_starts_from_decides(tmp_path):
    theirs = ImageFormat((4, 3), ("a", "b"), "uint16", ((0, 900),), "given", (0.5, 0.25), (1.0, 2.0))
    config = METHODS["gtsa"].load("config")(image_format=theirs.to_dict(), num_channels=2)
    dataset = folder_of(tmp_path / "data", ramp("uint16", 900, 5))
    assert resolved(["--dataset", dataset], start=config)[1:] == (theirs, [])
    with pytest.raises(UsageError, match="--channels is part of the model that --model_name_or_path names"):
        resolved(["--dataset", dataset, "--channels", "1,2"], start=config)
    plain = METHODS["gtsa"].load("config")()
    with pytest.raises(UsageError, match="takes 3 channels, and --channels all gives 5"):
        resolved(["--dataset", dataset, "--channels", "all"], start=plain)
    assert resolved(["--dataset", dataset, "--channels", "3,2,1"], start=plain)[1].channels == (3, 2, 1)


def test_a_run_that_goes_on_reads_what_it_read(tmp_path):
    theirs = ImageFormat("rgb", dtype="uint16", value_range=((0, 4095),), range_source="bits:12")
    (tmp_path / "config.json").write_text(json.dumps({"image_format": theirs.to_dict()}), encoding="utf-8")
    dataset = folder_of(tmp_path / "data", ramp("uint16", 900, 3))
    assert resolved(["--dataset", dataset], checkpoint=tmp_path)[1:] == (theirs, [])


def test_data_on_the_hub_are_measured_where_an_argument_asks_for_it(tmp_path):
    local = load_stream(folder_of(tmp_path / "data", ramp("uint16", 900, 3)))
    remote = ImageStream(replace(local.source, kind="hub"))
    given = Pretraining("quickstart", METHODS["gtsa"])
    assert resolve_images(given, remote) == (ImageFormat(), [])
    given = Pretraining("quickstart", METHODS["gtsa"], data=DataArguments(value_range=["percentiles:0,100"]))
    assert resolve_images(given, remote)[0].value_range == ((0, 900),)


def test_words_are_joined_as_people_mean_them():
    assert joined(["4", "3"], ",") == "4,3"
    assert joined("4,3", ",") == "4,3"
    assert joined(["0", "4095"], ";") == "0,4095"
    assert joined([[0, 1], [0, 5]], ";") == "0, 1;0, 5"
    assert joined([7], ",") == "7"
