"""DICOM images by pydicom: any transfer syntax that is one, rescaled to the values that they mean, black at the small end."""

import warnings
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from hf_geossl.data.notes import note
from hf_geossl.data.rasters import BrokenImageError, Raster, check_size, decoding, missing_extra, quiet, usable
from hf_geossl.data.readers.embedded import refuse_large_segment

if TYPE_CHECKING:
    from pydicom import Dataset

_DEFLATED = b"1.2.840.10008.1.2.1.99"  # the whole file is compressed: it could be of any size
_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
_RLE = "1.2.840.10008.1.2.5"
# groups 2 and 8, which come first
_FIRST_ELEMENTS = {bytes((group, 0, element, 0)) for group in (2, 8) for element in (0, 1, 2, 5, 8, 16, 18, 22)}
# transfer syntax -> decoder of imagecodecs
_CODECS = {
    "1.2.840.10008.1.2.4.50": "jpeg8_decode",
    "1.2.840.10008.1.2.4.51": "jpeg_decode",
    "1.2.840.10008.1.2.4.57": "ljpeg_decode",
    "1.2.840.10008.1.2.4.70": "ljpeg_decode",
    "1.2.840.10008.1.2.4.80": "jpegls_decode",
    "1.2.840.10008.1.2.4.81": "jpegls_decode",
    "1.2.840.10008.1.2.4.90": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.91": "jpeg2k_decode",
}


def is_dicom(head: bytes) -> bool:
    """Whether the start of a file is that of a DICOM file; old ones lack the preamble and begin with an element."""
    return head[128:132] == b"DICM" or head[:4] in _FIRST_ELEMENTS


def read_dicom(file: BinaryIO, max_pixels: int) -> Raster:
    """Reads the first image of a DICOM file.

    MONOCHROME1 is turned so that black is small; rescale slope and intercept are applied, so that CT is in Hounsfield
    units; palettes and YBR become RGB. A window that the file advises is noted, and not applied.

    Raises:
        BrokenImageError: if it is damaged, too large, or holds no image.
    """
    try:
        import pydicom
    except ImportError:
        raise missing_extra("DICOM files", "pydicom") from None
    if _DEFLATED in file.read(4096):
        raise BrokenImageError("its transfer syntax is deflated as a whole, which is not read; write it uncompressed")
    file.seek(0)
    with warnings.catch_warnings(), quiet("pydicom"), decoding("it cannot be read as DICOM"):
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(file, force=True)
        if "PixelData" not in dataset:
            raise BrokenImageError("it is a DICOM file without an image")
        lacking = [name for name in ("Rows", "Columns", "BitsAllocated") if dataset.get(name) is None]
        if lacking:
            raise BrokenImageError(f"it lacks {' and '.join(lacking)}")
        width, height, channels = int(dataset.Columns), int(dataset.Rows), int(dataset.get("SamplesPerPixel", 1))
        allocated = int(dataset.BitsAllocated)
        if channels not in (1, 3) or allocated not in (1, 8, 16, 32):
            raise BrokenImageError(f"its {channels} samples of {allocated} bits are not read")
        check_size(width, height, max_pixels, channels, max(1, allocated // 8))
        frames = int(dataset.get("NumberOfFrames", None) or 1)
        if frames > 1:
            note("frames", count=f"{frames} images")
        values = _decode(dataset, width, height, channels, frames)
        return _raster(dataset, values, frames)


def _decode(dataset: "Dataset", width: int, height: int, channels: int, frames: int) -> np.ndarray:
    """The stored values of the first frame, of shape `(height, width, channels)`."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import pixel_array

    syntax = _transfer_syntax(dataset)
    if syntax in _NATIVE or syntax == _RLE:
        needed = width * height * channels * int(dataset.BitsAllocated) // 8
        needed = needed * 2 // 3 if dataset.get("PhotometricInterpretation") == "YBR_FULL_422" else needed
        if syntax in _NATIVE and len(dataset.PixelData) < needed:
            raise BrokenImageError(f"it is truncated: {len(dataset.PixelData)} of {needed} bytes")
        values = pixel_array(dataset, index=0, decoding_plugin="pydicom" if syntax == _RLE else "")
        return values.reshape(height, width, channels)
    if syntax not in _CODECS:
        raise BrokenImageError(f"its transfer syntax {syntax} is not one of images that is read")
    try:
        import imagecodecs
    except ImportError:
        raise missing_extra("compressed DICOM files", "imagecodecs") from None
    frame = get_frame(dataset.PixelData, 0, number_of_frames=frames)
    refuse_large_segment(frame, width, height)
    colors = {}
    if (
        dataset.get("PhotometricInterpretation") == "RGB"
        and syntax.endswith(".50")
        and b"\xff\xee\x00\x0eAdobe" not in frame[:4096]
    ):
        colors = {"colorspace": "RGB", "outcolorspace": "RGB"}  # which JPEG itself cannot say
    values = getattr(imagecodecs, _CODECS[syntax])(frame, **colors)
    return values.reshape(height, width, channels)


def _transfer_syntax(dataset: "Dataset") -> str:
    """The file's, or the one that it was read as where it names none."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    meta = dataset.file_meta
    if "TransferSyntaxUID" not in meta:
        implicit, little = dataset.original_encoding
        read_as = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta.add_new("TransferSyntaxUID", "UI", read_as)
    return str(meta.TransferSyntaxUID)


def _raster(dataset: "Dataset", values: np.ndarray, frames: int) -> Raster:
    photometric, signed = (
        str(dataset.get("PhotometricInterpretation", "MONOCHROME2")),
        bool(dataset.get("PixelRepresentation", 0)),
    )
    if photometric == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        colors = apply_color_lut(values[..., 0], dataset)
        return Raster(usable(colors), "DICOM", color=True, frames=frames)
    if values.shape[2] == 3:
        return Raster(usable(values), "DICOM", color=True, frames=frames, bits=_fewer_bits(dataset))
    bits = int(dataset.get("BitsStored", dataset.BitsAllocated))
    if not 1 <= bits <= 32:
        raise BrokenImageError(f"its BitsStored of {bits} makes no sense")
    whole = _stored(values, bits, signed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if photometric == "MONOCHROME1":
        whole = low + high - whole
    slope, intercept = _rescale(dataset)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    if float(slope).is_integer() and float(intercept).is_integer() and max(map(abs, ends)) < 2**31:
        pixels = whole * int(slope) + int(intercept)
        kinds = ("uint8", "uint16", "int16", "int32")
        name = next(kind for kind in kinds if np.iinfo(kind).min <= ends[0] and ends[1] <= np.iinfo(kind).max)
        pixels = pixels.astype(name)
    else:
        pixels = (whole * slope + intercept).astype(np.float32)
    return Raster(
        pixels,
        "DICOM",
        bits=bits if pixels.dtype.kind == "u" and bits % 8 else None,
        span=(float(ends[0]), float(ends[1])) if bits <= 16 else None,
        frames=frames,
        window=_window(dataset),
    )


def _stored(values: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """The `bits` that count of each value, as int64; others may hold overlays."""
    whole = values.astype(np.int64) & (2**bits - 1)
    return np.where(whole >= 2 ** (bits - 1), whole - 2**bits, whole) if signed else whole


def _fewer_bits(dataset: "Dataset") -> int | None:
    stored = int(dataset.get("BitsStored", dataset.BitsAllocated))
    return stored if stored % 8 else None


def _rescale(dataset: "Dataset") -> tuple[float, float]:
    """Slope and intercept, also of enhanced multi-frame files."""
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        groups: Any = dataset.get(name)
        if groups and "PixelValueTransformationSequence" in groups[0] and groups[0].PixelValueTransformationSequence:
            dataset = groups[0].PixelValueTransformationSequence[0]
            break
    slope, intercept = float(dataset.get("RescaleSlope", 1) or 1), float(dataset.get("RescaleIntercept", 0) or 0)
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        raise BrokenImageError("its rescale slope or intercept is no number")
    return slope, intercept


def _window(dataset: "Dataset") -> tuple[float, float] | None:
    center, width = (dataset.get(name) for name in ("WindowCenter", "WindowWidth"))
    try:
        first = [
            float(value[0] if isinstance(value, (list, tuple)) or hasattr(value, "append") else value)
            for value in (center, width)
        ]
    except (TypeError, ValueError, IndexError):
        return None
    return first[0], first[1]
