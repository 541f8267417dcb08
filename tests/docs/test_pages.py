"""README and docs/ say what is so: their code runs, the messages and functions that they name exist."""

import gc
import re
import shutil
import tarfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
import tifffile
import yaml
from PIL import Image

from hf_geossl.cli.main import main
from tests.helpers.golden import ROOT
from tests.helpers.pages import PAGES, blocks, literals, run_block, small
from tests.helpers.photographs import write_folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of the pages has: images of several kinds under the names that the pages use, and a trained folder."""
    root = tmp_path_factory.mktemp("world")
    photos = sorted(write_folder(root / "path/to/images", 12).iterdir())
    write_folder(root / "path/to/others", 4)
    for index, photo in enumerate(photos):
        target = root / "labelled" / ("test" if index % 3 == 2 else "train") / ("left" if index % 2 else "right")
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, target)
    (root / "shards").mkdir()
    with tarfile.open(root / "shards/0.tar", "w") as archive:
        for photo in photos:
            archive.add(photo, arcname=photo.name)
    pq.write_table(pa.table({"photo": [photo.read_bytes() for photo in photos]}), root / "table.parquet")
    draw = np.random.default_rng(0)
    for name in ("tiles", "scans", "ct", "cells", "xrays"):
        (root / name).mkdir()
    for index in range(6):
        ramp = np.linspace(0, 1, 48)[:, None] * np.linspace(0.2, 1, 48)
        noise = draw.random((48, 48, 13)) * 0.2
        tifffile.imwrite(root / f"tiles/{index}.tif", ((ramp[..., None] + noise) * 3000).astype(np.uint16))
        Image.fromarray((ramp * 4000 + noise[..., 0] * 400).astype(np.uint16)).save(root / f"scans/{index}.png")
        tifffile.imwrite(root / f"ct/{index}.tif", (ramp * 2000 - 1000 + noise[..., 0] * 99).astype(np.int16))
        cell = ((ramp[..., None] + noise[..., :3]) * 3000).astype(np.uint16).transpose(2, 0, 1)
        names = {"axes": "CYX", "Channel": {"Name": ["dna", "er", "actin"]}}
        tifffile.imwrite(root / f"cells/{index}.tif", cell, ome=True, metadata=names)
        write_dicom(root / f"xrays/{index}.dcm", (ramp * 4000 + noise[..., 0] * 90).astype(np.uint16))
        part = "test" if index % 3 == 2 else "train"
        side = "left" if index % 2 else "right"
        (root / "xrays_labelled" / part / side).mkdir(parents=True, exist_ok=True)
        shutil.copy(root / f"xrays/{index}.dcm", root / "xrays_labelled" / part / side)
        for kind in ("images", "masks", "depth"):
            (root / "truth" / part / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray((noise[..., :3] * 1000).astype(np.uint8)).save(root / f"truth/{part}/images/{index}.png")
        Image.fromarray((ramp * 3).astype(np.uint8)).save(root / f"truth/{part}/masks/{index}.png")
        np.save(root / f"truth/{part}/depth/{index}.npy", (1 + ramp * 9).astype(np.float32))
    shutil.copy(root / "tiles/0.tif", root / "tile.tif")
    shutil.copy(photos[0], root / "picture.jpg")
    for name, photo in zip(("query.jpg", "other.jpg"), photos, strict=False):
        shutil.copy(photo, root / name)
    (root / "my.yaml").write_text("method: gtsa\ndata: {dataset: path/to/images}\ntraining: {output_dir: mine}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        words = ["pretrain", "quickstart", "--dataset", "path/to/images", "--output_dir", "run"]
        assert main([*small(words), "--num_hidden_layers", "4"]) == 0
    gc.collect()
    gc.freeze()  # a run collects garbage three times: what this one has imported need not be visited in the others
    for copy in ("run-a", "run-b", "geossl-quickstart"):
        shutil.copytree(root / "run", root / copy)
    return root


def write_dicom(path: Path, pixels: np.ndarray) -> None:
    """A grey image of 12 bits in 16, uncompressed."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    image = pydicom.Dataset()
    image.file_meta = meta
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PixelRepresentation, image.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelData = pixels.tobytes()
    image.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_blocks_of_code_run(page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        run_block(block, namespace, monkeypatch)


def test_recipes_that_pages_show_are_read(tmp_path: Path) -> None:
    from hf_geossl.cli.pretrain_arguments import parse_pretrain

    shown = [block for page in PAGES for block in blocks(page) if block.language == "yaml" and "method:" in block.text]
    for block in shown:
        file = tmp_path / "shown.yaml"
        file.write_text(block.text)
        assert parse_pretrain([str(file)]).method.name == yaml.safe_load(block.text)["method"]


def test_quoted_messages_are_in_the_code() -> None:
    """Each message of docs/troubleshooting.md; an ellipsis stands for what differs from run to run."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(quoted) >= 20
    said = literals(ROOT / "hf_geossl")
    for message in quoted:
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…")), re.DOTALL)
        assert any(pattern.search(text) for text in said), f"nothing says {message!r}"


def test_paper_index_names_functions_and_tests_that_exist() -> None:
    """A row: an equation, what computes it, the test that holds it against numbers from elsewhere, which names it too."""
    page = (ROOT / "docs/papers.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| .*`tests/", line)]
    assert len(rows) >= 30
    for row in rows:
        functions = re.findall(r"\[`[\w.]+`\]\[(hf_geossl[\w.]+)\]", row[-2])
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[-1])
        assert functions, row
        assert tests, row
        for name in functions:
            _resolve(name)
        for file, test in tests:
            assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {test}"


def _resolve(name: str) -> object:
    """What a dotted name of a class, a function or a method stands for."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"there is no {name}")


def test_the_row_of_a_method_that_is_shown_is_the_one_that_is_tried() -> None:
    row = (ROOT / "tests/helpers/fourth_method/row.txt").read_text()
    assert row in (ROOT / "docs/add_a_method.md").read_text()
