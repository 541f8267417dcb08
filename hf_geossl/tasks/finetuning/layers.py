"""What of a model is trained beside its head: all of the trunk, some layers, adapters, or nothing."""

from transformers import PreTrainedModel

from hf_geossl.training.adaptation.adapters import inject_adapters
from hf_geossl.training.adaptation.trunk import freeze_layers, name_in_trunk


def choose_layers(model: PreTrainedModel, train_layers: str, lora_rank: int, lora_alpha: float) -> str:
    """Freezes what is not trained of a model's trunk, or gives it adapters.

    Args:
        model (`PreTrainedModel`): With a head; it is changed.
        train_layers, lora_rank, lora_alpha: See `AdaptationSettings`.

    Returns:
        `str`: How much is trained, in a line.

    Raises:
        ImportError: If adapters are asked for without peft.
        ValueError: If the trunk has fewer layers.
    """
    trunk: PreTrainedModel = getattr(model, model.base_model_prefix)
    if lora_rank:
        inject_adapters(trunk, lora_rank, lora_alpha, train_layers)
    elif train_layers == "head":
        trunk.requires_grad_(False)
    else:
        freeze_layers(model, train_layers)
    for name, parameter in trunk.named_parameters():
        if name.endswith("mask_token"):
            parameter.requires_grad_(False)  # no feature of a whole image depends on it
    sizes = [(p.numel(), p.requires_grad, name_in_trunk(n, model) is not None) for n, p in model.named_parameters()]
    trained = sum(size for size, trains, of_trunk in sizes if trains and of_trunk)
    total = sum(size for size, _, of_trunk in sizes if of_trunk)
    head = sum(size for size, _, of_trunk in sizes if not of_trunk)
    how = f"LoRA of rank {lora_rank}: " if lora_rank else ""
    return f"{how}{trained:,} of the trunk's {total:,} parameters are trained ({100 * trained / total:.1f} %), and the head's {head:,}"
