"""Memory for batches on a CPU."""

import contextlib
import math
import mmap
import weakref
from collections import deque
from collections.abc import Sequence

import torch

HUGE_PAGE = 2**21  # bytes, on x86 and on arm with pages of 4 kB

_spares: deque[mmap.mmap] = deque(maxlen=16)  # oldest first


def empty_batch(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`torch.empty` for what is large, written once and needed anew in every step: on a CPU in memory that is used again.

    A batch from torch is fresh memory, and the first touch of its pages of 4 kB takes longer than the arithmetic that fills them.
    Here the memory of a tensor that is gone serves the next one of about its size, and it consists of huge pages, of which
    there are 512 times fewer, where the system lends them to who asks (`madvise`; torch does not).

    Args:
        shape (`Sequence[int]`): of the tensor.
        dtype (`torch.dtype`): of the tensor.
        device (`torch.device`): where it lies; on an accelerator, and below half a huge page, this is `torch.empty`.

    Returns:
        `torch.Tensor` of that shape: contiguous, not initialised. The 16 pieces of memory that were given back last are kept.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < HUGE_PAGE // 2 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.ceil(size / HUGE_PAGE) * HUGE_PAGE
    block = _spare(size) or _map_huge_pages(size)
    lent = memoryview(block)  # the tensor keeps it alive, and nobody else does
    weakref.finalize(lent, _spares.append, block).atexit = False
    return torch.frombuffer(lent, dtype=dtype, count=math.prod(shape)).view(shape)


def _spare(size: int) -> mmap.mmap | None:
    for _ in range(len(_spares)):
        try:
            block = _spares.popleft()
        except IndexError:  # another thread took it
            return None
        if len(block) == size:
            return block
        _spares.append(block)
    return None


def _map_huge_pages(size: int) -> mmap.mmap:
    # Shared memory, Python's default, gets no huge pages; systems align what is a whole number of them.
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without huge pages
        block.madvise(mmap.MADV_HUGEPAGE)
    return block
