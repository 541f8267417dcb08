"""The anchor: what keeps a trunk's features near those that it starts from."""

import copy
import hashlib
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hf_geossl.modeling.teacher_student import TeacherStudentModel


class Anchor:
    """Adds the distance between the student's patch tokens and those of a frozen copy of its trunk to a model's loss.

    They are compared on the views that the student encodes first in a forward pass, where it sees all patches but masked
    ones, which count for nothing: global views (LOCA: the patches of the random query that it keeps). The copy is made
    here, of what the run starts from, and is whole on every process; no checkpoint holds it, for a resumed run starts from
    the same, see `digest`.

    Args:
        model (`TeacherStudentModel`): The pretraining model, before it is trained or has adapters.
        weight (`float`): Of the distance; with 0 nothing is done.
        device (`torch.device`): Where the copy is.

    Raises:
        ValueError: If the model starts from nothing, whose features are no use to stay near.
    """

    def __init__(self, model: TeacherStudentModel, weight: float, device: torch.device) -> None:
        self.weight = weight
        self.trunk: Any = None
        self._encoded: tuple[tuple[Any, ...], dict[str, Any], Any] | None = None
        if not weight:
            return
        if not (getattr(model.config, "init_from", None) or model.name_or_path):
            raise ValueError(
                "anchor_weight needs a model that starts from a trunk: load_for_pretraining(..., init_from=...) makes one "
                "(--init_from)"
            )
        student = getattr(model, model.base_model_prefix)
        self.trunk = copy.deepcopy(student).requires_grad_(False).eval().to(device)
        student.register_forward_hook(self._observe, with_kwargs=True)

    def _observe(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: object) -> None:
        if self._encoded is None and module.training and torch.is_grad_enabled():
            self._encoded = (args, kwargs, outputs)

    def forget(self) -> None:
        """Drops what the student has encoded in a forward pass whose loss is not taken."""
        self._encoded = None

    def digest(self) -> str | None:
        """A hash of the copy's weights, which a resumed run must start from again; None without an anchor."""
        if self.trunk is None:
            return None
        total = hashlib.sha256()
        for name, value in sorted(self.trunk.state_dict().items()):
            total.update(name.encode())
            total.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
        return total.hexdigest()[:16]

    def add_to(self, outputs: Any) -> Any:
        """Adds the term to what a forward pass returned, as `anchor_loss` beside the losses; without weight nothing."""
        if self.trunk is None or self._encoded is None:
            return outputs
        (args, kwargs, encoded), self._encoded = self._encoded, None
        masked = kwargs.get("bool_masked_pos")
        with torch.no_grad():
            source = self.trunk(*args, **{key: value for key, value in kwargs.items() if key != "bool_masked_pos"})
        tokens, targets = self.trunk.patch_tokens(encoded), self.trunk.patch_tokens(source)
        distance = patch_distance(tokens, targets, masked)
        outputs["anchor_loss"], outputs["loss"] = distance, outputs.loss + self.weight * distance
        return outputs


def patch_distance(tokens: torch.Tensor, targets: torch.Tensor, masked: torch.Tensor | None = None) -> torch.Tensor:
    """The mean of 1 - cosine over patch tokens `(batch, patches, channels)`, in float32.

    Args:
        tokens, targets (`torch.Tensor` of shape `(batch, patches, channels)`): Those that move, and those that do not.
        masked (`torch.Tensor` of shape `(batch, patches)`, bool, *optional*): Patches that count for nothing.

    Returns:
        `torch.Tensor` of shape `()`: in [0, 2].
    """
    with torch.autocast(tokens.device.type, enabled=False):
        distances = 1.0 - F.cosine_similarity(tokens.float(), targets.float(), dim=-1)  # (B, N)
        if masked is None:
            return distances.mean()
        seen = (~masked).to(distances.dtype)
        return (distances * seen).sum() / seen.sum().clamp_min(1.0)
