"""Layers that are compiled by block: one compilation serves all layers of student and teacher, and views of all sizes."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_geossl.modeling.modeling_vit import ViTLayer, compute_layer
from hf_geossl.views.compiled import CompiledFunction

logger = logging.getLogger(__name__)

# of the layers of a run: with and without gradient, drop path and adapters, frozen or not, in training and evaluation
MAX_GRAPHS = 32


@dataclass(frozen=True)
class BlockCompilation:
    """What `torch_compile`, `torch_compile_backend` and `torch_compile_mode` ask for, done by block.

    Args:
        backend (`str` or `Callable`): As in `torch.compile`.
        mode (`str`, *optional*): The same.
    """

    backend: str | Callable[..., Any] = "inductor"
    mode: str | None = None

    def compile(self, function: Callable[..., torch.Tensor]) -> CompiledFunction:
        """Compiles a function of layers, so that a resumed run gets the same kernels."""
        settings: dict[str, Any] = {"backend": self.backend, "mode": self.mode}
        if self.backend == "inductor" and self.mode is None:  # kernels are not chosen by how long they took
            settings["options"] = {"deterministic": True} if "deterministic" in torch._inductor.list_options() else {}
        return CompiledFunction(function, "layers", **settings)

    @contextmanager
    def compiled(self, *models: nn.Module | None) -> Iterator[None]:
        """Computes the layers of models with one compiled function inside of it."""
        layers = [layer for model in models if model is not None for layer in model.modules()]
        function = self.compile(compute_layer)
        with ExitStack() as stack:
            stack.enter_context(compiler_settings())
            for layer in layers:
                if isinstance(layer, ViTLayer):
                    layer.compute_with(function)
                    stack.callback(layer.compute_with, compute_layer)
            logger.info(f"layers are compiled by {self.backend}, which takes seconds of the first step")
            yield


@contextmanager
def compiler_settings() -> Iterator[None]:
    """Settings of the compiler for blocks: backward passes are compiled with the forward ones, so that both can fail there."""
    with ExitStack() as stack:
        # blocks are small beside DDP's buckets, whose bounds need not cut them
        limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
        stack.enter_context(torch._dynamo.config.patch(optimize_ddp=False, recompile_limit=limit))
        if hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"):
            stack.enter_context(torch._functorch.config.patch(force_non_lazy_backward_lowering=True))
        yield
