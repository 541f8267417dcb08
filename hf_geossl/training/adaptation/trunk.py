"""What of a trunk is trained, at which share of the learning rate, and from which step on."""

import re

from transformers import PreTrainedModel

_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
_NORMS = re.compile(r"(?:layernorm|embeddings\.norm|encoder\.layer\.\d+\.norm\d)\.")


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
    depth = model.config.num_hidden_layers
    layer = _LAYER.match(inner)
    above = depth - int(layer[1]) if layer else 0
    if inner.startswith("embeddings."):
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
    chosen = layers_of(train_layers, model.config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        inner = name_in_trunk(name, model)
        if inner is None:
            continue
        layer = _LAYER.match(inner)
        if train_layers == "norms":
            trained = _NORMS.match(inner) is not None
        else:
            trained = int(layer[1]) in chosen if layer else inner.startswith("layernorm.")
        parameter.requires_grad_(parameter.requires_grad and trained)
