"""What of a trunk is trained, at which share of the learning rate, and from which step on."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel


def name_in_trunk(name: str, model: PreTrainedModel) -> str | None:
    """The name that a parameter of a pretraining model has in the student's trunk; None for heads and teacher.

    The mask token counts as a head: no feature of a whole image depends on it, and most trunks bring none along.
    """
    prefix = f"{model.base_model_prefix}."
    inner = name.removeprefix(prefix)
    return inner if name.startswith(prefix) and inner != "embeddings.mask_token" else None


def lr_multiplier(name: str, model: PreTrainedModel, layer_decay: float, patch_embed_learning_rate: float) -> float:
    """`layer_decay` for each layer above a parameter of the trunk, and a share of its own for the patch embedding.

    Source: DINOv2 (arXiv 2304.07193), the authors' code.
    """
    inner = name.removeprefix(f"{model.base_model_prefix}.")
    if inner == name:
        return 1.0
    depth, trunk = model.config.num_hidden_layers, _trunk_of(model)
    layer = _layer_of(inner, trunk)
    above = 0 if layer is None else depth - layer
    if inner.startswith(trunk.embedding_names):
        above = depth + 1
    multiplier = layer_decay**above
    return multiplier * patch_embed_learning_rate if ".patch_embeddings." in name else multiplier


def layers_of(train_layers: str, depth: int) -> range:
    """The layers that `train_layers` names, of `depth`.

    Raises:
        ValueError: If there are fewer.
    """
    last = int(train_layers.partition(":")[2] or depth)
    if last > depth:
        raise ValueError(f"train_layers must name at most the {depth} layers that the trunk has, got {train_layers!r}")
    return range(depth - last, depth)


def freeze_layers(model: PreTrainedModel, train_layers: str) -> None:
    """Takes what is never trained from the optimizer: no gradient, and no state, which DDP and FSDP2 leave out too."""
    if train_layers == "all":
        return
    chosen, trunk = layers_of(train_layers, model.config.num_hidden_layers), _trunk_of(model)
    norms = [name for name, module in trunk.named_modules() if _is_norm(module)]
    for name, parameter in model.named_parameters():
        inner = name_in_trunk(name, model)
        if inner is None:
            continue
        layer = _layer_of(inner, trunk)
        if train_layers == "norms":
            trained = inner.rpartition(".")[0] in norms
        else:
            trained = not inner.startswith(trunk.embedding_names) if layer is None else layer in chosen
        parameter.requires_grad_(parameter.requires_grad and trained)


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a layer norm, or an RMS norm, of which each library has classes of its own."""
    return isinstance(module, nn.LayerNorm) or "rmsnorm" in type(module).__name__.lower()


def _trunk_of(model: PreTrainedModel) -> Any:
    return getattr(model, model.base_model_prefix)


def _layer_of(inner: str, trunk: Any) -> int | None:
    """The number of the layer that a parameter of a trunk is in; None of others."""
    rest = inner.removeprefix(f"{trunk.layers_name}.")
    return int(rest.partition(".")[0]) if rest != inner else None
