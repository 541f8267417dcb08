"""Images that Pillow reads: to RGB of 8 bits as ever, and to rasters."""

import io
import struct
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from hf_geossl.data.notes import note
from hf_geossl.data.rasters import BrokenImageError, Raster, check_size, decoding, describe_error, usable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")

# EXIF orientation -> what brings the pixels upright (TIFF 6.0, tag 274)
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_START = b"\x89PNG\r\n\x1a\n"
# what PNG's pixels and their orientation need; text and colour profiles can be large and are not read
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")

# what often lies under the name of an image
_NO_IMAGES = {
    b"version https://git-lfs": "a pointer of Git LFS: `git lfs pull` fetches the file",
    b"<!doctype html": "a page of a web site, as a failed download leaves it: fetch the file again",
    b"<html": "a page of a web site, as a failed download leaves it: fetch the file again",
}


def open_image(file: BinaryIO) -> Image.Image:
    """Opens an image without decoding it, and without Pillow's check of its size.

    Raises:
        BrokenImageError: if the header is damaged or of another format.
    """
    try:
        image = _open(file)
    except Exception as error:
        image = _open_png_without_metadata(file)
        if image is None:
            raise BrokenImageError(f"its header cannot be read ({describe_error(error)})") from error
    if image is None:
        image = _open_png_without_metadata(file)
    if image is None:
        file.seek(0)
        start = file.read(64).lstrip().lower()
        for beginning, what in _NO_IMAGES.items():
            if start.startswith(beginning):
                raise BrokenImageError(f"not an image but {what}") from None
        raise BrokenImageError(f"not an image of a known format ({', '.join((*FORMATS, 'DICOM', 'NPY', 'NPZ'))})")
    return image


def _open(file: BinaryIO) -> Image.Image | None:
    """`Image.open` without its check of the size, which warns or refuses before `max_pixels` is compared."""
    start = file.read(16)
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()
        if name not in Image.OPEN:  # Pillow can be built without AVIF and JPEG 2000
            continue
        reader, accepts = Image.OPEN[name]
        if accepts is None or accepts(start) is True:
            file.seek(0)
            try:
                return reader(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):  # how a reader says that it is another format
                continue
    return None


def _open_png_without_metadata(file: BinaryIO) -> Image.Image | None:
    """Opens a PNG that Pillow refuses for its texts or profile, which may be of any size; None if that does not help."""
    file.seek(0)
    if file.read(len(_PNG_START)) != _PNG_START:
        return None
    try:
        image = _open(io.BytesIO(without_png_metadata(file)))
    except Exception:  # the error of the whole file is reported
        return None
    return image


def without_png_metadata(file: BinaryIO) -> bytes:
    """The chunks of a PNG that its pixels need, from an open file; nothing else is interpreted."""
    file.seek(len(_PNG_START))
    parts = [_PNG_START]
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in _PNG_CHUNKS:
            parts += [head, file.read(length + 4)]
        else:
            file.seek(length + 4, io.SEEK_CUR)
    return b"".join(parts)


def load(image: Image.Image, max_pixels: int, file: BinaryIO | None = None) -> Image.Image:
    """Decodes the pixels of an open image.

    Args:
        image (`PIL.Image.Image`): from `open_image`, or anybody's.
        max_pixels (`int`): the largest width x height.
        file (`BinaryIO`, *optional*): that it was opened from. A PNG whose texts Pillow refuses is read without them.

    Returns:
        `PIL.Image.Image`: decoded; `image` itself, but for such a PNG.

    Raises:
        BrokenImageError: if it is too large or damaged.
    """
    check_size(image.width, image.height, max_pixels)
    try:
        with decoding():
            image.load()
    except BrokenImageError:
        again = None if file is None or image.format != "PNG" else _open_png_without_metadata(file)
        if again is None:
            raise
        with decoding():
            again.load()
        return again
    return image


def has_fixed_range(image: Image.Image) -> bool:
    """Whether the pixels have 8 bits, so that `to_rgb` gives the picture that everybody sees."""
    return image.mode not in ("I", "F") and not image.mode.startswith("I;16")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a decoded image of 8 bits to an upright RGB image of its own.

    Raises:
        BrokenImageError: if the mode cannot be converted.
    """
    turn = UPRIGHT.get(orientation_of(image))
    try:
        rgb = _plain_rgb(image)
    except Exception as error:
        raise BrokenImageError(f"mode {image.mode} cannot be converted to RGB ({describe_error(error)})") from error
    rgb = rgb if turn is None else rgb.transpose(turn)
    rgb.info.clear()  # of this copy: the orientation has been applied and must not be again
    return rgb


def _plain_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()  # detached from the file and from the owner's image
    if not image.has_transparency_data:
        if image.mode == "CMYK":
            note("cmyk")
        return image.convert("RGB")
    number = 2 if image.mode in ("LA", "La") else 4
    image = image.convert("RGBA")
    if np.asarray(image.getchannel("A")).min(initial=255) < 255:
        note("transparency", number=number)
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def to_raster(image: Image.Image) -> Raster:
    """The stored values of a decoded image, upright; palettes, CMYK and other spaces become RGB.

    Raises:
        BrokenImageError: if the mode cannot be converted.
    """
    orientation, kind = orientation_of(image), image.format or "image"
    with decoding(f"mode {image.mode} cannot be converted"):
        if image.mode in ("L", "1", "F", "I") or image.mode.startswith("I;16"):
            if "transparency" in image.info and image.mode in ("L", "1"):
                image = image.convert("LA")
        elif image.mode == "LA":
            pass
        elif image.has_transparency_data:
            image = image.convert("RGBA")
        elif image.mode != "RGB":
            if image.mode == "CMYK":
                note("cmyk")
            image = image.convert("RGB")
        values = upright_array(image, orientation)
    if image.mode in ("LA", "RGBA"):
        return Raster(values[..., :-1], kind, transparency=values[..., -1], color=image.mode == "RGBA")
    return Raster(values, kind, color=image.mode == "RGB")


def upright_array(image: Image.Image, orientation: int) -> np.ndarray:
    """Pixels of shape `(height, width, channels)` in their stored type, turned by an orientation of 1 to 8."""
    turn = UPRIGHT.get(orientation)
    values = usable(np.array(image if turn is None else image.transpose(turn)))
    return values[:, :, None] if values.ndim == 2 else values


def orientation_of(image: Image.Image) -> int:
    """Orientation of 1 to 8 that the file gives; 1 where it gives none or a damaged one."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block is no reason to lose the pixels
        return 1


def note_frames(image: Image.Image) -> None:
    """Notes that an image is the first of several; called when its pixels have been taken, because GIF reads on."""
    try:
        several = bool(getattr(image, "is_animated", False))
        if several and image.format == "TIFF":
            size = image.size
            image.seek(1)  # smaller copies and masks are no frames
            several = image.size == size and not int(image.tag_v2.get(254, 0)) & 5  # type: ignore[attr-defined]
    except Exception:  # the rest of the file is damaged, and is not used
        several = True
    if several:
        counted = image.format in ("PNG", "WEBP", "MPO", "AVIF")  # known from the header
        note("frames", count=f"{image.n_frames} images" if counted else "several images")  # type: ignore[attr-defined]
