"""The processes that `torchrun` or `accelerate launch` has started, of which each makes its own shards."""

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

_PATIENCE = datetime.timedelta(days=30)  # a process may have many more images than another


@dataclass(frozen=True)
class Processes:
    """This process of how many.

    Args:
        rank, world_size (`int`): Its number, and how many there are.
        local_rank (`int`): Its number on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def launched(cls) -> "Processes":
        """Reads what the launcher says; a single process where there is none."""
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_PATIENCE)  # no tensors are sent: it waits on a CPU too
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))

    def wait(self) -> None:
        """Waits for the others."""
        if self.world_size > 1:
            dist.barrier()

    def device(self, name: str | None) -> str | None:
        """The device of this process: of several GPUs its own, unless one is named."""
        if name in (None, "cuda") and torch.cuda.is_available() and self.world_size > 1:
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return name
