"""Image files of every format that is read, made by the libraries of the field, with the values that they hold."""

import io
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


def values(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    """Noise over the whole range of a type; floats lie in 0 to 1."""
    draw, kind = np.random.default_rng(seed), np.dtype(dtype)
    if kind.kind == "f":
        return draw.random(shape).astype(kind)
    return draw.integers(np.iinfo(kind).min, np.iinfo(kind).max, shape, endpoint=True).astype(kind)


def photo(height: int = 40, width: int = 48) -> np.ndarray:
    """A smooth picture with an edge, uint8 of shape `(height, width, 3)`, which codecs compress as they do photographs."""
    y, x = np.mgrid[0:height, 0:width]
    colors = np.stack([x * 5 % 256, y * 6 % 256, (x * 3 + y * 2) % 256], axis=-1)
    return colors.astype(np.uint8)


def saved(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def npy(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels, **options)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def dicom(pixels: np.ndarray, *, bits: int | None = None, encoded: bytes | None = None, **tags: Any) -> bytes:
    """A DICOM file of `(height, width)` or `(height, width, 3)`; `encoded` and `syntax` in the tags hold compressed pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(dataset, name, value)
    if encoded is None:
        dataset.PixelData = pixels.tobytes()
    else:
        dataset.PixelData = pydicom.encaps.encapsulate([encoded])
        dataset["PixelData"].VR = "OB"
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def good_files() -> dict[str, bytes]:
    """A small sound file of every format and of its layouts, for tests that damage them."""
    rgb, rgb16 = photo(), photo().astype(np.uint16) * 257
    grey, five = rgb[..., 0], np.concatenate([rgb, rgb[..., :2]], -1)
    images = [Image.fromarray(rgb), Image.fromarray(rgb[::-1].copy())]
    several = {"save_all": True, "append_images": images[1:]}
    header = b"P6\n# made here\n48 40\n"
    return {
        "jpeg": saved(rgb, "JPEG", quality=90),
        "jpeg grey": saved(grey, "JPEG"),
        "mpo": saved(images[0], "MPO", **several),
        "png": saved(rgb, "PNG"),
        "png palette": saved(Image.fromarray(rgb).quantize(16), "PNG"),
        "png rgba": saved(Image.fromarray(rgb).convert("RGBA"), "PNG"),
        "png 16 grey": saved(rgb16[..., 0], "PNG"),
        "png 16 rgb": imagecodecs.png_encode(rgb16),
        "apng": saved(images[0], "PNG", **several),
        "webp": saved(rgb, "WEBP"),
        "webp lossless": saved(rgb, "WEBP", lossless=True),
        "bmp": saved(rgb, "BMP"),
        "gif": saved(images[0].quantize(16), "GIF"),
        "avif": saved(rgb, "AVIF", quality=80),
        "jpeg 2000": saved(rgb, "JPEG2000"),
        "jpeg 2000 five": imagecodecs.jpeg2k_encode(five, level=0, reversible=True, codecformat="jp2"),
        "ppm": header + b"255\n" + rgb.tobytes(),
        "ppm 16": header + b"65535\n" + rgb16.astype(">u2").tobytes(),
        "pgm ascii": b"P2\n48 40\n4095\n" + " ".join(map(str, grey.astype(int).ravel() * 16)).encode(),
        "pam": b"P7\nWIDTH 48\nHEIGHT 40\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + rgb.tobytes(),
        "pfm": b"Pf\n48 40\n-1.0\n" + (grey / np.float32(255)).astype("<f4").tobytes(),
        "tiff": saved(rgb, "TIFF"),
        "tiff lzw": saved(rgb, "TIFF", compression="tiff_lzw"),
        "tiff five deflate": tiff(five, photometric="minisblack", planarconfig="contig", compression="deflate", tile=(16, 16)),
        "tiff planar": tiff(np.moveaxis(five, 2, 0).astype(np.uint16), photometric="minisblack", planarconfig="separate"),
        "tiff 16 zstd": tiff(rgb16, photometric="rgb", compression="zstd", predictor=True),
        "tiff float": tiff((grey / 255).astype(np.float32), compression="deflate"),
        "tiff jpeg": tiff(np.moveaxis(five[..., :4], 2, 0), photometric="minisblack", planarconfig="separate", compression="jpeg", tile=(16, 16)),
        "tiff stack": tiff(np.moveaxis(five, 2, 0).astype(np.uint16)),
        "tiff ome": tiff(np.moveaxis(five, 2, 0), ome=True, metadata={"axes": "CYX"}),
        "npy": npy(five.astype(np.uint16)),
        "npz": npz(image=five.astype(np.float32)),
        "dicom": dicom(grey.astype(np.int16) * 8, bits=12, RescaleIntercept=-1024, RescaleSlope=1),
        "dicom rgb": dicom(rgb),
        "dicom jpeg 2000": dicom(
            grey, encoded=imagecodecs.jpeg2k_encode(grey, level=0, reversible=True), syntax="1.2.840.10008.1.2.4.90"
        ),
        "dicom jpeg-ls": dicom(grey, encoded=imagecodecs.jpegls_encode(grey), syntax="1.2.840.10008.1.2.4.80"),
    }  # fmt: skip
