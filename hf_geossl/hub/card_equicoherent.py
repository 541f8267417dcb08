"""What a card says of the reconstruction of transformed images: as EquiCoherent beside its hosts, and beside other methods."""

from dataclasses import replace

from transformers import PreTrainedConfig

from hf_geossl.hub.method_card import MethodCard, Paper

_TASK_FIELDS = ("num_intermediate", "reconstruct_final", "reconstruction_weight", "equivariant_features")
_WITHOUT_TEACHER = ("vicreg", "simclr")
_HOSTS = {
    "ibot": Paper(
        "iBOT", "2111.07832", "iBOT: Image BERT Pre-Training with Online Tokenizer", "Zhou, Jinghao and others"
    ),
    "dinov2": Paper(
        "DINOv2",
        "2304.07193",
        "DINOv2: Learning Robust Visual Features without Supervision",
        "Oquab, Maxime and others",
    ),
    "dino": Paper(
        "DINO",
        "2104.14294",
        "Emerging Properties in Self-Supervised Vision Transformers",
        "Caron, Mathilde and others",
    ),
    "vicreg": Paper(
        "VICReg",
        "2105.04906",
        "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
        "Bardes, Adrien and Ponce, Jean and LeCun, Yann",
    ),
    "simclr": Paper(
        "SimCLR",
        "2002.05709",
        "A Simple Framework for Contrastive Learning of Visual Representations",
        "Chen, Ting and others",
    ),
}


def describe_host(card: MethodCard, config: PreTrainedConfig) -> MethodCard:
    """Names the host whose loss was trained, and describes the host alone where nothing is reconstructed.

    Args:
        card (`MethodCard`): Of EquiCoherent.
        config (`EquiCoherentConfig`): Of the model.

    Returns:
        `MethodCard`: The words for this model.
    """
    host = _HOSTS[config.host]
    card = replace(card, tags=(config.host,), teacher=config.host not in _WITHOUT_TEACHER)
    if config.num_decoders:
        return replace(card, host=host, fields=(*card.fields, "transformation", *_TASK_FIELDS))
    about = f"{host.name} alone, as a baseline: no image is reconstructed."
    return replace(card, paper=host, about=about, lesson="saying the same of several views of one image.")


def add_reconstruction(card: MethodCard, config: PreTrainedConfig) -> MethodCard:
    """Says of another method that EquiCoherent's task was trained beside it, where it was.

    Args:
        card (`MethodCard`): Of the method.
        config (`PreTrainedConfig`): Of the model, with the fields of the task.

    Returns:
        `MethodCard`: The words for this model.
    """
    if not config.num_decoders:
        return card
    about = (
        f"{card.about} Beside it the images along a transformation are reconstructed from a part of the patch features "
        "(EquiCoherent's task, [arXiv 2503.18753](https://arxiv.org/abs/2503.18753))."
    )
    return replace(card, about=about, fields=(*card.fields, "reconstruction", *_TASK_FIELDS))
