"""TIFF and GeoTIFF of any layout, by tifffile and imagecodecs: planar, tiled, compressed, any number of bands, any type."""

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from hf_geossl.data.notes import note
from hf_geossl.data.rasters import (
    MAX_CHANNELS,
    BrokenImageError,
    Raster,
    check_size,
    decoding,
    is_transparency,
    missing_extra,
    note_band,
    quiet,
    upright,
    usable,
)
from hf_geossl.data.readers.embedded import refuse_large_segment

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PAGES_LOOKED_AT = 64
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _CMYK, _YCBCR, _LINEAR_RAW = 0, 1, 2, 3, 5, 6, 34892
_PLAIN = {0, 1, _RGB, _PALETTE, _CMYK, _YCBCR}
# tag 259: codecs that give exactly the bytes asked for, and those whose own header is compared with the segment's size
_BOUNDED = {1, 5, 8, 32773, 32946, 34925, 50000, 50013}
_WITH_HEADER = {6, 7, 33003, 33004, 33005, 34712, 34887, 50001}


def is_plain(image: Image.Image) -> bool:
    """Whether Pillow gives exactly the colours that a file holds: 1 to 8 bits without further channels.

    Args:
        image (`PIL.Image.Image`): a TIFF image that Pillow opened.
    """
    try:
        tags = image.tag_v2  # type: ignore[attr-defined]
        samples, photometric = tags.get(277, 1), tags.get(262, 0)
        colors = {_RGB: 3, _CMYK: 4, _YCBCR: 3}.get(photometric, 1)
        formats, bits, text = tags.get(339, (1,)), tags.get(258, (1,)), str(tags.get(270, ""))[:4096]
        if image.is_animated and (text.startswith(('{"shape"', "ImageJ")) or "<OME" in text):  # type: ignore[attr-defined]
            return False  # pages may be channels
        return photometric in _PLAIN and samples == colors and set(formats) <= {1, 4} and max(bits) <= 8
    except Exception:  # damaged tags
        return False


def may_be_transparent(image: Image.Image) -> bool:
    """Whether an open TIFF image is grey or RGB of 8 bits with a channel tagged as transparency."""
    return image.mode in ("LA", "RGBA")


def is_transparent(image: Image.Image) -> bool:
    """Whether that channel of a decoded image is transparency indeed."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    return (
        len(tags.get(258, ())) == len(image.mode)
        and max(tags[258]) == 8
        and is_transparency(np.asarray(image.getchannel("A")), 255, _on_map(tags))
    )


def read_tiff(file: BinaryIO, max_pixels: int, pages_as_channels: bool = False) -> Raster:
    """Reads the first image of a TIFF file, or all its pages as the channels of one image.

    Pages are channels where the file says so (OME, ImageJ, or an array that tifffile wrote channels first).

    Args:
        file (`BinaryIO`): open.
        max_pixels (`int`): the largest width x height.
        pages_as_channels (`bool`, *optional*): whether all pages of one size and type are channels of the image.

    Raises:
        BrokenImageError: if it is damaged, too large or of a kind that is not read.
    """
    try:
        import tifffile
    except ImportError:
        raise missing_extra("TIFF files of this kind", "tifffile and imagecodecs") from None
    size = file.seek(0, 2)
    file.seek(0)
    with quiet("tifffile"), decoding("its header cannot be read"), tifffile.TiffFile(file) as tiff:
        first = page_of(tiff, 0)
        rows = _rows_as_pages(tiff, first, max_pixels, size)
        if rows is not None:
            with decoding():
                return raster_of(first, rows.asarray(maxworkers=1), Stack(), stacked=True)
        stack = stack_of(tiff, first, pages_as_channels)
        pages = [first, *(page_of(tiff, index) for index in stack.pages[1:])]
        values = []
        for page in pages:
            check_page(page, max_pixels, size, len(pages))
            with decoding():
                values.append(_decode(page))
        if stack.frames > 1:
            note("frames", count=f"{stack.frames} images")
        with decoding():
            joined = values[0] if len(values) == 1 else np.concatenate(values, axis=2)
            return raster_of(first, joined, stack, len(pages) > 1)


@dataclass(frozen=True)
class Stack:
    """Which pages make the image, how many images there are, and the channels' names."""

    pages: tuple[int, ...] = (0,)
    frames: int = 1
    names: tuple[str, ...] = ()


def page_of(tiff: "TiffFile", index: int) -> "TiffPage":
    """A page of a file, counted from 0."""
    return tiff.pages.get(index, aspage=True) if index else tiff.pages.first  # type: ignore[return-value]


def stack_of(tiff: "TiffFile", first: "TiffPage", pages_as_channels: bool) -> Stack:
    """Decides which pages of a file make its first image."""
    alike = _alike(tiff, first)
    names, count, stride = _described_channels(tiff, first, len(alike))
    if pages_as_channels and first.samplesperpixel == 1:
        count, stride = len(alike), 1
    if count > 1 and first.samplesperpixel == 1 and count * stride <= len(alike):
        pages = tuple(alike[: count * stride : stride])
        return Stack(pages, len(alike) // count, names)
    return Stack((0,), len(alike), names)


def _rows_as_pages(tiff: "TiffFile", first: "TiffPage", max_pixels: int, size: int) -> "TiffPageSeries | None":
    """An array `(height, width, channels)` that tifffile wrote as a page a row, as it does where nobody says what it is."""
    shape, axes = _shaped(first)
    if len(shape) != 3 or axes or tuple(shape[1:]) != first.shape or not shape[2] <= MAX_CHANNELS < shape[1]:
        return None
    check_page(first, max_pixels, size, 1)
    check_size(shape[1], shape[0], max_pixels, shape[2], first.dtype.itemsize)  # type: ignore[union-attr]
    series = tiff.series[0]
    return series if list(series.shape) == shape else None


def _shaped(first: "TiffPage") -> tuple[list[int], str]:
    """The shape of the array that tifffile wrote, and its axes where they were named; nothing of other programs' files."""
    text = str(first.description or "")
    described = json.loads(text) if first.is_shaped and text.startswith("{") else {}
    shape = described.get("shape")
    if not isinstance(shape, list) or any(type(side) is not int for side in shape):
        return [], ""
    return shape, str(described.get("axes", ""))


def _alike(tiff: "TiffFile", first: "TiffPage") -> list[int]:
    """Numbers of the pages that are images like the first: no smaller copies and masks; at most 64."""
    indices = [0]
    for index in range(1, _PAGES_LOOKED_AT):
        try:
            page = page_of(tiff, index)
        except IndexError:
            break
        except Exception:  # what is damaged behind the first image is not used
            break
        reduced = page.subfiletype & 5
        if not reduced and page.shaped == first.shaped and page.dtype == first.dtype:
            indices.append(index)
    return indices


def _described_channels(tiff: "TiffFile", first: "TiffPage", pages: int) -> tuple[tuple[str, ...], int, int]:
    """Names of channels, how many pages are channels of the first image, and the step from one to the next."""
    text = str(first.description or "")
    if tiff.is_imagej:
        ours = tiff.imagej_metadata or {}
        names = ours.get("Labels") if isinstance(ours.get("Labels"), list) else []
        return tuple(map(str, names or ())), int(ours.get("channels", 1)), 1
    if first.is_ome:  # by patterns: nothing of the file's XML is expanded
        names = tuple(re.findall(r'<Channel\b[^>]*?\bName="([^"<>]{1,100})"', text[:1_000_000]))
        found = {
            key: re.search(rf'\b{key}="(\w{{1,9}})"', text) for key in ("SizeC", "SizeZ", "SizeT", "DimensionOrder")
        }
        sizes = {key: int(match[1]) if match and match[1].isdigit() else 1 for key, match in found.items()}
        order = found["DimensionOrder"][1] if found["DimensionOrder"] else "XYCZT"
        before = order[2 : order.index("C")] if "C" in order else ""
        return names, sizes["SizeC"], math.prod(sizes.get(f"Size{axis}", 1) for axis in before)
    shape, axes = _shaped(first)
    if len(shape) == 3 and axes[:1] in ("", "C", "Q") and shape[0] == pages <= MAX_CHANNELS:
        return (), pages, 1
    items = re.findall(r"<Item\b([^>]*)>([^<]{1,100})</Item>", str(first.tags.valueof(42112, ""))[:1_000_000])  # GDAL's
    described = {
        int(number[1]): name
        for head, name in items
        if 'role="description"' in head and (number := re.search(r'sample="(\d{1,4})"', head))
    }
    return tuple(described.get(band, f"channel {band + 1}") for band in range(max(described, default=-1) + 1)), 1, 1


def check_page(page: "TiffPage", max_pixels: int, size: int, pages: int) -> None:
    """Raises a `BrokenImageError` for a page that cannot be read whole: too large, truncated, damaged, of a kind that is not read.

    Args:
        page (`tifffile.TiffPage`): the page.
        max_pixels (`int`): the largest width x height.
        size (`int`): of the file in bytes.
        pages (`int`): that make one image together.
    """
    check_layout(page, size)
    values, itemsize = page.samplesperpixel * pages, page.dtype.itemsize  # type: ignore[union-attr]
    check_size(page.imagewidth, page.imagelength, max_pixels, values, itemsize)
    rows, columns = segment_shape(page)
    if rows * columns > max(max_pixels, 2**16):
        raise BrokenImageError(f"its tiles of {columns} x {rows} make no sense")
    check_size(columns, rows, max(max_pixels, 2**16), page.samplesperpixel, itemsize)
    if page.compression in _WITH_HEADER:
        for index in range(len(page.dataoffsets)):
            read_segment(page, index)


def segment_shape(page: "TiffPage") -> tuple[int, int]:
    """Rows and columns of a page's tiles, or of its strips."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def read_segment(page: "TiffPage", index: int) -> bytes:
    """Reads an encoded tile or strip, and refuses one that would decode to more pixels than it should hold."""
    file = page.parent.filehandle
    file.seek(page.dataoffsets[index])
    content: bytes = file.read(page.databytecounts[index])
    if page.compression in _WITH_HEADER:
        rows, columns = segment_shape(page)
        refuse_large_segment(content, columns, rows)
    return content


def check_layout(page: "TiffPage", size: int) -> None:
    """Raises a `BrokenImageError` for a page of a kind that is not read, or whose pixels are not all in the file of `size` bytes."""
    if page.dtype is None or page.imagedepth != 1:
        raise BrokenImageError("its values are of a type or depth that is not read")
    rows, columns = segment_shape(page)
    if rows * columns <= 0:
        raise BrokenImageError(f"its tiles of {columns} x {rows} make no sense")
    expected = math.ceil(page.imagewidth / columns) * math.ceil(page.imagelength / rows)
    expected *= page.samplesperpixel if page.planarconfig == 2 else 1
    if len(page.dataoffsets) != len(page.databytecounts) or len(page.dataoffsets) < expected:
        raise BrokenImageError(f"it has {len(page.dataoffsets)} tiles or strips instead of {expected}")
    if any(start + length > size for start, length in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise BrokenImageError("it is truncated: its pixels end behind the file")
    if (
        page.compression == 1
        and sum(page.databytecounts) < page.imagewidth * page.imagelength * page.bitspersample // 8
    ):
        raise BrokenImageError("it is truncated: it holds fewer pixels than it says")
    if page.compression not in _BOUNDED | _WITH_HEADER:
        raise BrokenImageError(f"its compression {page.compression} is not read; write it with DEFLATE, LZW or ZSTD")


def _decode(page: "TiffPage") -> np.ndarray:
    """Pixels of shape `(height, width, samples)`."""
    try:
        values = page.asarray(squeeze=False, maxworkers=1)  # (planes, depth, height, width, samples)
    except ModuleNotFoundError:
        raise missing_extra("TIFF files with this compression", "imagecodecs") from None
    except ValueError as error:
        if "imagecodecs" in str(error):
            raise missing_extra("TIFF files with this compression", "imagecodecs") from None
        raise
    return values[:, 0, ..., 0].transpose(1, 2, 0) if page.planarconfig == 2 else values[0, 0]


def raster_of(
    page: "TiffPage",
    values: np.ndarray,
    stack: Stack,
    stacked: bool,
    transparency: tuple[int | None, bool] | None = None,
) -> Raster:
    """Makes the raster of decoded values.

    Args:
        page (`tifffile.TiffPage`): the first one of the image.
        values (`numpy.ndarray` of shape `(height, width, samples)`): as stored.
        stack ([`Stack`]): the pages.
        stacked (`bool`): whether the samples are those of several pages.
        transparency (`tuple`, *optional*): as `transparency_of` gives it; decided by these values by default.
    """
    values, bits, color, opaque = _as_colors(page, values)
    if transparency is None:
        transparency = (None, False) if stacked else _transparency(page, values, 3 if color else 1, opaque)
    at, multiplied = transparency
    names, nodata = stack.names, page.tags.valueof(42113)
    alpha = None
    if at is not None:
        alpha = values[..., at]
        values = np.delete(values, at, axis=2)
        names = tuple(name for index, name in enumerate(names) if index != at)
        if multiplied:
            values = _unmultiply(values, alpha, opaque)
    orientation = int(page.tags.valueof(274, 1))
    values = usable(upright(values, orientation))
    return Raster(
        values,
        "TIFF",
        names=names if len(names) == values.shape[2] else (),
        bits=bits,
        transparency=None if alpha is None else usable(upright(alpha, orientation)),
        transparency_at=-1 if at is None else at,
        color=color,
        nodata=_number(nodata),
        frames=stack.frames,
    )


def transparency_of(page: "TiffPage", values: np.ndarray) -> tuple[int | None, bool]:
    """Decides by stored values which sample is transparency (None where none is), and whether colours were multiplied by it."""
    values, _, color, opaque = _as_colors(page, values)
    return _transparency(page, values, 3 if color else 1, opaque)


def _as_colors(page: "TiffPage", values: np.ndarray) -> tuple[np.ndarray, int | None, bool, float]:
    """Values with black at the small end, the bits in use, whether they are colours, and what is opaque."""
    photometric, bits = int(page.photometric), _bits(page)
    if photometric == _MINISWHITE:
        values = _invert(values, bits)
    elif photometric == _PALETTE and page.colormap is not None:
        table = (page.colormap.astype(np.uint32) + 128) // 257
        values, bits = table.astype(np.uint8)[:, values[..., 0]].transpose(1, 2, 0), None
    elif photometric == _CMYK and values.dtype.kind == "u" and values.shape[2] >= 4:
        note("cmyk")
        top = np.float64(2**bits - 1 if bits else np.iinfo(values.dtype).max)
        rgb = (top - values[..., :3]) * (top - values[..., 3:4]) / top
        values = np.concatenate([np.round(rgb).astype(values.dtype), values[..., 4:]], axis=2)
    elif photometric not in (_MINISBLACK, _RGB, _YCBCR, _LINEAR_RAW):
        raise BrokenImageError(f"its colour space {page.photometric!r} is not read; convert it to RGB")
    color = photometric in (_RGB, _PALETTE, _CMYK, _YCBCR)
    opaque = 1.0 if values.dtype.kind == "f" else float(2**bits - 1 if bits else np.iinfo(usable(values[:1]).dtype).max)
    return values, bits, color, opaque


def _bits(page: "TiffPage") -> int | None:
    """Bits that are used of each value, where they are fewer than the type has."""
    if page.dtype is None or page.dtype.kind not in "ui":
        return None
    whole, used = page.dtype.itemsize * 8, page.bitspersample
    if isinstance(used, int) and 1 < used < whole:
        return used
    largest = page.tags.valueof(281)  # some writers put the largest value in use here: then it is no power of two
    largest = max(largest) if isinstance(largest, tuple) and largest else largest
    if (
        isinstance(largest, int)
        and whole == 16
        and (largest + 1).bit_length() - 1 in range(9, 16)
        and not largest & (largest + 1)
    ):
        return largest.bit_length()
    return None


def _invert(values: np.ndarray, bits: int | None) -> np.ndarray:
    if values.dtype.kind == "b":
        return ~values
    if values.dtype.kind == "f":
        note("white")
        return values
    return np.invert(values) if bits is None or values.dtype.kind == "i" else values.dtype.type(2**bits - 1) - values


def _transparency(page: "TiffPage", values: np.ndarray, colors: int, opaque: float) -> tuple[int | None, bool]:
    """Number from 0 of the channel that is transparency, and whether the colours were multiplied by it."""
    extra = tuple(int(kind) for kind in page.extrasamples or ())
    on_map = _on_map(page.tags)
    for at, kind in enumerate(extra, start=values.shape[2] - len(extra)):
        if kind in (1, 2) and at >= colors:
            if is_transparency(values[..., at], opaque, on_map):
                return at, kind == 1
            note_band(values[..., at], opaque, at + 1)
    return None, False


def _on_map(tags: Any) -> bool:
    return 34735 in tags or 42112 in tags  # GeoKeyDirectory, GDAL's metadata


def _unmultiply(values: np.ndarray, alpha: np.ndarray, opaque: float) -> np.ndarray:
    share = np.maximum(alpha[..., None].astype(np.float64), 1e-9) / opaque
    colors = np.minimum(values / share, opaque)
    return (np.round(colors) if values.dtype.kind in "iu" else colors).astype(values.dtype)


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None
