"""FSDP2 in processes without a GPU, for tests: accelerate would take DDP there without a word.

As a program, `python -m tests.helpers.fsdp_on_cpu pretrain ...`, it is `geossl` with that.
"""

import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from hf_geossl.cli.main import main


def allow_fsdp_on_cpu() -> None:
    """From here on this process's accelerate takes FSDP on CPUs (gloo) as it does on GPUs, where it was chosen."""
    initialise = AcceleratorState.__init__

    def initialise_with_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = initialise_with_fsdp


if __name__ == "__main__":
    allow_fsdp_on_cpu()
    sys.exit(main(sys.argv[1:]))
