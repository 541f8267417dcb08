"""Turns what a metric is given (tensors on any device, arrays, lists) into checked NumPy arrays."""

from collections.abc import Sequence

import numpy as np
import torch


def to_array(name: str, value: object) -> np.ndarray:
    """Converts a value to an array.

    Args:
        name (`str`): Its name in error messages.
        value (`torch.Tensor`, `np.ndarray`, number or a list of these, equal in shape): object device; bfloat16 becomes float32.

    Returns:
        `np.ndarray` of booleans, integers or floats.

    Raises:
        ValueError: If the value is None, ragged or not made of numbers.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    elif isinstance(value, (list, tuple)) and any(isinstance(part, torch.Tensor) for part in value):
        parts = [to_array(name, part) for part in value]
        if len({part.shape for part in parts}) > 1:
            raise ValueError(f"{name} must be equal in shape, got {sorted({part.shape for part in parts})}")
        array = np.stack(parts)
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:  # NumPy's word for a ragged list
            raise ValueError(f"{name} must be equal in shape: {error}") from None
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} must be numbers, got {type(value).__name__} of {array.dtype}")
    return array


def to_floats(name: str, value: object, shape: tuple[int | None, ...]) -> np.ndarray:
    """Converts a value to finite floats.

    Args:
        name (`str`): Its name in error messages.
        value: See [`to_array`].
        shape (`tuple`): Expected shape; None fits every size.

    Returns:
        `np.ndarray` of float64.

    Raises:
        ValueError: If the shape is another, or a number is infinite or not a number.
    """
    array = to_array(name, value).astype(np.float64)
    check_shape(name, array, shape)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).sum())} NaN or infinite numbers")
    return array


def to_integers(
    name: str, value: object, shape: tuple[int | None, ...], stop: int, besides: int | None = None
) -> np.ndarray:
    """Converts a value to integers of a range.

    Args:
        name (`str`): Its name in error messages.
        value: See [`to_array`].
        shape (`tuple`): Expected shape; None fits every size.
        stop (`int`): Numbers must lie in 0..stop-1.
        besides (`int`, *optional*): One number outside of them that may come too.

    Returns:
        `np.ndarray` of int64.

    Raises:
        ValueError: If the shape is another, the numbers are floats, or one lies outside.
    """
    array = to_array(name, value)
    check_shape(name, array, shape)
    if array.dtype.kind not in "bui" and array.size:
        raise ValueError(f"{name} must be integers, got {array.dtype}; take the argmax of scores first")
    array = array.astype(np.int64)
    outside = (array < 0) | (array >= stop)
    if besides is not None:
        outside &= array != besides
    if outside.any():
        also = "" if besides is None else f" or {besides}"
        raise ValueError(f"{name} must lie in 0..{stop - 1}{also}, got {int(array[outside][0])}")
    return array


def check_shape(name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> None:
    """Checks an array's shape.

    Raises:
        ValueError: If the array has another number of axes, or another size where the shape is not None.
    """
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {array.shape}")


def pairs(predictions: object, references: object) -> list[tuple[object, object]]:
    """Pairs predictions with references.

    Args:
        predictions, references (array or tensor of shape `(images, ...)`, or a list with one entry an image):
            Entries of a list may differ in shape from image to image.

    Returns:
        `list[tuple]`: A prediction and a reference an image.

    Raises:
        ValueError: If one is missing, or they are not of the same length.
    """
    entries = []
    for name, value in (("predictions", predictions), ("references", references)):
        if not isinstance(value, (Sequence, np.ndarray, torch.Tensor)) or isinstance(value, str):
            raise ValueError(f"{name} must be one entry an image, got {type(value).__name__}")
        entries.append(value)
    if len(entries[0]) != len(entries[1]):
        raise ValueError(
            f"predictions and references must be of the same images, got {len(entries[0])} and {len(entries[1])}"
        )
    return list(zip(*entries, strict=True))
