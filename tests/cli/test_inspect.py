"""`geossl inspect`: what is printed and written, and that a run takes the recipe."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hf_geossl.cli.image_arguments import resolve_images
from hf_geossl.cli.inspect import RECIPE, RESULTS, SHEET, STATE, inspect
from hf_geossl.cli.main import main
from hf_geossl.cli.pretrain_arguments import parse_pretrain
from hf_geossl.cli.pretrain_model import make_config, make_views
from hf_geossl.cli.recipes import recipes
from hf_geossl.data.inspection import Inspection
from hf_geossl.data.streams import load_stream
from hf_geossl.modeling.image_format import ImageFormat

DRAW = np.random.default_rng(0)


def folder_of(root: Path, dtype: str = "uint8", channels: int = 3, count: int = 6) -> Path:
    root.mkdir(parents=True)
    for index in range(count):
        pixels = DRAW.normal(100, 20, (10, 12, channels)).astype(dtype)
        if dtype == "uint8" and channels == 3:
            Image.fromarray(pixels).save(root / f"{index}.png")
        elif channels == 1:
            tifffile.imwrite(root / f"{index}.tif", pixels[..., 0], photometric="minisblack")
        else:
            tifffile.imwrite(root / f"{index}.tif", pixels, photometric="minisblack", planarconfig="contig")
    return root


@pytest.mark.parametrize("recipe", recipes())
@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 3), ("uint16", 1), ("uint16", 5), ("float32", 13)])
def test_a_run_takes_the_recipe_that_is_written(tmp_path, dtype, channels, recipe):
    data = folder_of(tmp_path / "data", dtype, channels)
    assert inspect([str(data), "--output", str(tmp_path / "out"), "--recipe", recipe]) == 0
    values = json.loads((tmp_path / "out" / RESULTS).read_text(encoding="utf-8"))
    given = parse_pretrain([str(tmp_path / "out" / RECIPE)])
    assert given.data.dataset == str(data)
    assert given.method == parse_pretrain([recipe]).method
    image_format, _ = resolve_images(given, load_stream(given.data.dataset, given.data.split))
    expected = ImageFormat.from_dict(values["image_format"])
    assert image_format.channels == expected.channels
    assert image_format.names == expected.names
    assert np.array(image_format.value_range) == pytest.approx(np.array(expected.value_range))
    assert image_format.mean == pytest.approx(expected.mean, rel=1e-5)
    assert image_format.std == pytest.approx(expected.std, rel=1e-5)
    config = make_config(given, image_format)
    make_views(given, type("Model", (), {"config": config})(), image_format)  # type: ignore[arg-type]
    if (dtype, channels) == ("uint8", 3):
        assert image_format == ImageFormat()
        assert given.data.channels is None


def test_files_are_written_and_lines_printed(tmp_path, capsys):
    data = folder_of(tmp_path / "data")
    (data / "empty.png").write_bytes(b"")
    assert main(["inspect", str(data), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    for part in (
        "train: 6 images, 1 broken one",
        "size: 10 x 12",
        "broken: 1 image, such as empty.png: the file is empty",
    ):
        assert part in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([RESULTS, RECIPE, SHEET])
    with Image.open(tmp_path / "out" / SHEET) as sheet:
        assert sheet.mode == "RGB"
        assert len(np.unique(np.asarray(sheet))) > 50
    assert "max_broken_share: 0.19" in (tmp_path / "out" / RECIPE).read_text(encoding="utf-8")


def test_an_interrupted_inspection_goes_on_when_asked(tmp_path, capsys, monkeypatch):
    data, out = folder_of(tmp_path / "data"), str(tmp_path / "out")
    inspect_image = Inspection._inspect_image

    def stopping(self, *place):
        inspect_image(self, *place)
        self.stop()

    monkeypatch.setattr(Inspection, "_inspect_image", stopping)
    assert main(["inspect", str(data), "--output", out]) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert (tmp_path / "out" / STATE).is_file()
    assert main(["inspect", str(data), "--output", out]) == 2
    assert "--resume goes on, --overwrite begins anew" in capsys.readouterr().err
    monkeypatch.setattr(Inspection, "_inspect_image", inspect_image)
    assert main(["inspect", str(data), "--output", out, "--resume"]) == 0
    assert "train: 6 images" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / RESULTS).read_text(encoding="utf-8"))["duplicates"]["copies"] == 0


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--limit", "0"], "--limit must be at least 1"),
        (["--max_pixels", "0"], "--max_pixels must be at least 1"),
        (["--recipe", "quickstar"], "did you mean 'quickstart'"),
        (["--resume", "--overwrite"], "leave one of the two out"),
        (["--splits", "test"], "did you mean '--split'"),
        (["--split", "test"], "has no split 'test'"),
    ],
)
def test_errors_are_one_sentence(tmp_path, capsys, words, error):
    data = folder_of(tmp_path / "data")
    assert main(["inspect", str(data), "--output", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert error in said
    assert said.count("\n") == 1


def test_results_are_not_replaced_unasked(tmp_path, capsys):
    data, out = folder_of(tmp_path / "data"), str(tmp_path / "out")
    for words, status in (([], 0), ([], 2), (["--resume"], 2), (["--overwrite", "--limit", "2"], 0)):
        assert main(["inspect", str(data), "--output", out, *words]) == status
    assert json.loads((tmp_path / "out" / RESULTS).read_text(encoding="utf-8"))["images"] == 2
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["inspect", str(data), "--output", str(tmp_path / "file")]) == 2
    assert "is a file, not a folder" in capsys.readouterr().err


def test_scenes_can_be_inspected(tmp_path, capsys):
    words = ["--dataset_config", "topdown-32", "--limit", "4", "--split", "train"]
    assert main(["inspect", "scenes", "--output", str(tmp_path / "out"), *words]) == 0
    assert "train: 4 images" in capsys.readouterr().out


def test_help_and_errors_need_no_torch():
    code = (
        "import sys; from hf_geossl.cli.main import main\n"
        "try: main(['inspect', '--help'])\n"
        "except SystemExit: pass\n"
        "assert main(['inspect', 'nowhere/at/all']) == 2\n"
        "print(sorted({'torch', 'datasets', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
