"""Makes what the pages of docs/ name, for practice: python docs/practice.py [FOLDER]; a command of a page then runs as it stands there.

Drawn scenes, so nothing is downloaded: `path/to/images`, `path/to/others`, `labelled` (a folder a class), `truth` (maps of classes and
depths), `tiles` (13 bands, 16 bits), `cells` (three named stains), `scans`, `ct`, `xrays` (DICOM) and `xrays_labelled`, `shards` (tars),
`table.parquet`, `my.yaml`, and the single images `picture.jpg`, `query.jpg`, `other.jpg` and `tile.tif`.
Needs `pip install -e ".[images]"`.
"""

import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import tifffile
from PIL import Image

from hf_geossl import load_scenes

BANDS = 13
STAINS = {"axes": "CYX", "Channel": {"Name": ["dna", "er", "actin"]}}


def make(root: Path, images: int = 60, side: int = 128) -> None:
    """Writes everything into `root`: so many images of so many pixels; a third of what is labelled is for testing."""
    draw = np.random.default_rng(0)
    mix = draw.random((3, BANDS)) / 3  # how much red, green and blue each band has
    for name in ("path/to/images", "path/to/others", "shards", "tiles", "scans", "ct", "cells", "xrays"):
        (root / name).mkdir(parents=True, exist_ok=True)
    photos = []
    for index, scene in enumerate(load_scenes("train", side, images)):
        photo, part = root / f"path/to/images/{index:03d}.jpg", "test" if index % 3 == 2 else "train"
        scene["image"].save(photo, quality=90)
        photos.append(photo)
        kind = "left" if index % 2 else "right"
        for folder in (f"labelled/{part}/{kind}", f"xrays_labelled/{part}/{kind}"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, root / f"labelled/{part}/{kind}")
        for folder in ("images", "masks", "depth"):
            (root / f"truth/{part}/{folder}").mkdir(parents=True, exist_ok=True)
        scene["image"].save(root / f"truth/{part}/images/{index}.png")
        Image.fromarray(scene["semantic"]).save(root / f"truth/{part}/masks/{index}.png")
        np.save(root / f"truth/{part}/depth/{index}.npy", np.asarray(scene["depth"], np.float32))
        pixels = np.asarray(scene["image"]).astype(float)
        grey = pixels.mean(axis=2) * 16  # 12 bits
        Image.fromarray(grey.astype(np.uint16)).save(root / f"scans/{index}.png")
        tifffile.imwrite(root / f"ct/{index}.tif", (grey - 1024).astype(np.int16))
        stains = (pixels * 16).astype(np.uint16).transpose(2, 0, 1)
        tifffile.imwrite(root / f"cells/{index}.tif", stains, ome=True, metadata=STAINS)
        write_dicom(root / f"xrays/{index}.dcm", grey.astype(np.uint16))
        shutil.copy(root / f"xrays/{index}.dcm", root / f"xrays_labelled/{part}/{kind}")
    for index, scene in enumerate(load_scenes("validation", side, max(4, images // 10))):
        scene["image"].save(root / f"path/to/others/{index:03d}.jpg", quality=90)
    for index, scene in enumerate(load_scenes("train", side, images, mode="topdown")):
        bands = np.asarray(scene["image"]) @ mix * 12 + draw.normal(0, 20, (side, side, BANDS))
        tifffile.imwrite(root / f"tiles/{index}.tif", bands.clip(0, 65535).astype(np.uint16))
    with tarfile.open(root / "shards/0.tar", "w") as archive:
        for photo in photos:
            archive.add(photo, arcname=photo.name)
    pq.write_table(pa.table({"photo": [photo.read_bytes() for photo in photos]}), root / "table.parquet")
    shutil.copy(root / "tiles/0.tif", root / "tile.tif")
    for name, photo in (("picture.jpg", photos[0]), ("query.jpg", photos[0]), ("other.jpg", photos[1])):
        shutil.copy(photo, root / name)
    (root / "my.yaml").write_text("method: gtsa\ndata: {dataset: path/to/images}\ntraining: {output_dir: mine}\n")


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


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "practice")
    if root.exists():
        raise SystemExit(f"{root} is there already: give another folder")
    make(root)
    print(f"wrote {root}: go there with `cd {root}`")


if __name__ == "__main__":
    main()
