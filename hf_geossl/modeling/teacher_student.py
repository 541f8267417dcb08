"""What the pretraining classes of all methods share: a student with a momentum teacher, and reconstruction.

The reconstruction of a transformation's intermediate images is a task that any method with two global views can carry.
"""

import itertools
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers.modeling_utils import PreTrainedModel

from .configuration_vit import ReconstructingViTConfig
from .modeling_vit import GeometricViTPreTrainedModel
from .modeling_vit_heads import ViTTrunkModel
from .objectives import mean_over_processes, reconstruction_loss

STAGES = 4  # of a decoder


class Teacher(nn.Module):
    """The momentum copy of what is trained, under the student's names; it gets no gradient."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.requires_grad_(False)


class TeacherStudentModel(GeometricViTPreTrainedModel):
    """Base of the pretraining classes.

    A subclass sets `teacher`, a module whose weights have the names of the student's, after its own submodules, and
    ends its `__init__` with `post_init()` and `copy_student_to_teacher()`. A method without a teacher sets it to None.
    """

    accepts_loss_kwargs = False
    _keep_in_fp32_modules_strict = ["teacher"]
    teacher: Any  # a module, or None

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers'. From a checkpoint without a teacher (an exported trunk) the teacher starts as the student."""
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        model.freeze_untrained()  # transformers makes every weight that it loads trainable
        if all(key in info["missing_keys"] for key in model.state_dict() if key.startswith("teacher.")):
            model.copy_student_to_teacher()
        return (model, info) if output_loading_info else model

    def freeze_untrained(self) -> None:
        """Keeps gradients from the teacher; a subclass adds what else its objective does not train."""
        if self.teacher is not None:
            self.teacher.requires_grad_(False)

    def on_optimizer_step(self, momentum: float) -> None:
        """Moves what moves once per optimizer step, after the student: here the teacher, see `update_teacher`."""
        self.update_teacher(momentum)

    def reset_accumulated(self) -> None:
        """Drops what the forward passes of an optimizer step that was skipped have accumulated."""

    def teacher_pairs(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Pairs the teacher's weights with the student's of the same names; two empty lists without a teacher."""
        if self.teacher is None:
            return [], []
        student = dict(self.named_parameters())
        teacher = dict(self.teacher.named_parameters())
        return list(teacher.values()), [student[name] for name in teacher]

    @torch.no_grad()
    def copy_student_to_teacher(self) -> None:
        """Makes the teacher equal to the student."""
        for teacher, student in zip(*self.teacher_pairs(), strict=True):
            if not teacher.is_meta:
                teacher.copy_(student)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Moves the teacher once: teacher <- momentum * teacher + (1 - momentum) * student, in the teacher's float32.

        Raises:
            ValueError: If `momentum` is outside [0, 1], or the teacher is in less than float32.
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        teachers, students = self.teacher_pairs()
        if other := {teacher.dtype for teacher in teachers} - {torch.float32, torch.float64}:
            raise ValueError(
                f"the teacher must be in float32, where small steps are not rounded away, got {other.pop()}; train with "
                "bf16=True (autocast) instead of moving the model to another dtype"
            )
        students = [student.to(teacher.dtype) for teacher, student in zip(teachers, students, strict=True)]
        move: Callable[..., None] = get_ema_multi_avg_fn(momentum)
        move(teachers, students, None)  # one operation for all weights; the third argument, a count, is not used


# ---- Reconstruction ----


class ReconstructionFields(Protocol):
    """The fields of a configuration that say which images are reconstructed."""

    num_intermediate: int
    reconstruct_final: bool


class ReconstructionDecoder(nn.Module):
    """Tokens to an image: a linear layer, then four times (bilinear upsampling, 3 x 3 convolution), GELU between them.

    Source: arXiv 2503.18753, which says "a single linear layer followed by four convolutional layers"; widths and
    upsampling are ours.
    """

    def __init__(self, in_features: int, hidden_size: int, num_channels: int) -> None:
        super().__init__()
        widths = [max(1, hidden_size >> stage) for stage in range(STAGES)] + [num_channels]
        self.linear = nn.Linear(in_features, widths[0])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(widths[stage], widths[stage + 1], 3, padding=1) for stage in range(STAGES)
        )

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
        """Maps `(batch, rows * columns, in_features)` to `(batch, channels, height, width)` of the given `size`."""
        maps = self.linear(tokens).transpose(1, 2).unflatten(2, grid)
        for stage, convolution in enumerate(self.convolutions, start=1):
            if stage < STAGES:
                target = [min(side << stage, whole) for side, whole in zip(grid, size, strict=True)]
            else:
                target = list(size)
            maps = convolution(F.interpolate(maps, target, mode="bilinear", align_corners=False))
            if stage < STAGES:
                maps = F.gelu(maps)
        return maps


class ReconstructionTask(nn.Module):
    """The decoders of the intermediate images, one each, and their loss. Used in pretraining only.

    Args:
        features (`int`): Channels of each view's tokens that go to decoders (d_equi).
        num_decoders (`int`): Images to reconstruct.
        hidden_size (`int`): Channels of a decoder's first stage (C0).
        num_channels (`int`): Channels of the images.
        in_features (`int`, *optional*): Where given, the tokens have this width and a linear layer of the task's own
            makes `features` channels of them.

    Source: arXiv 2503.18753.
    """

    def __init__(
        self, features: int, num_decoders: int, hidden_size: int, num_channels: int, in_features: int | None = None
    ) -> None:
        super().__init__()
        self.projection = nn.Identity() if in_features is None else nn.Linear(in_features, features)
        self.decoders = nn.ModuleList(
            ReconstructionDecoder(2 * features, hidden_size, num_channels) for _ in range(num_decoders)
        )

    def forward(
        self, first: torch.Tensor, second: torch.Tensor, targets: torch.Tensor, grid: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstructs images from patch tokens of the first global view and of the second, which is transformed.

        Both are `(batch, rows * columns, features)`, `targets (batch, num_decoders, channels, height, width)`
        normalised images. Gives the loss, `()`, and the reconstructions, of the targets' shape.
        """
        if targets.ndim != 5 or targets.shape[1] != len(self.decoders) or len(targets) != len(first):
            raise ValueError(
                f"there must be {len(self.decoders)} images to reconstruct for each of {len(first)} images, "
                f"(batch, K, channels, height, width), got {tuple(targets.shape)}; give num_intermediate to the views too"
            )
        pairs = torch.cat([self.projection(first), self.projection(second)], dim=-1)  # (B, N, 2 * features)
        size = (targets.shape[-2], targets.shape[-1])
        reconstructions = torch.stack([decoder(pairs, grid, size) for decoder in self.decoders], dim=1)
        with torch.autocast(targets.device.type, enabled=False):
            return reconstruction_loss(reconstructions, targets), reconstructions


def intermediate_targets(
    intermediate_pixel_values: torch.Tensor | None, final: torch.Tensor, config: ReconstructionFields
) -> torch.Tensor:
    """Collects the images that are reconstructed, `(batch, num_intermediate [+ 1], channels, height, width)`.

    `intermediate_pixel_values (batch, K, channels, height, width)` (or None where K = 0) lie between the two states of
    the transformation, `final (batch, channels, height, width)` is the last one, the second global view.

    Raises:
        ValueError: If the intermediate images are missing, or are not as many or as large as expected.
    """
    if intermediate_pixel_values is None:
        if config.num_intermediate:
            raise ValueError(
                f"intermediate_pixel_values must hold {config.num_intermediate} images an image, got None; take them from "
                "the views with the same transformation, or set reconstruction_weight=0"
            )
        intermediate_pixel_values = final[:, None][:, :0]
    expected = (len(final), config.num_intermediate, *final.shape[1:])
    if intermediate_pixel_values.shape != expected:
        raise ValueError(
            f"intermediate_pixel_values must have shape {expected}, (batch, num_intermediate, channels, height, width) at "
            f"the size of the transformed view, got {tuple(intermediate_pixel_values.shape)}; give num_intermediate to the "
            "views too"
        )
    if config.reconstruct_final:
        return torch.cat([intermediate_pixel_values, final[:, None]], dim=1)
    return intermediate_pixel_values


def mean_image_loss(targets: torch.Tensor) -> torch.Tensor:
    """Computes the reconstruction loss `()` of the batch's mean images, for targets `(batch, K, channels, height, width)`."""
    return reconstruction_loss(targets.mean(dim=0, keepdim=True).expand_as(targets), targets)


# ---- Beside the losses of a method whose own views stay untransformed


def attached_task(config: ReconstructingViTConfig) -> ReconstructionTask | None:
    """Makes the task of a method with losses of its own: after all its other submodules and before `post_init`.

    None where nothing is reconstructed. It leaves the random numbers as they are, so that `post_init`, which comes to
    it last, gives all else the weights that it has without the task.
    """
    if not config.num_decoders:
        return None
    features, hidden_size = config.decoder_sizes
    with torch.random.fork_rng(devices=[]):  # what constructors draw is drawn again by post_init
        return ReconstructionTask(features, config.num_decoders, hidden_size, config.num_channels, config.hidden_size)


def attached_reconstruction(
    model: PreTrainedModel,
    first: torch.Tensor,
    shape: torch.Size,
    transformed_pixel_values: torch.Tensor | None,
    intermediate_pixel_values: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """Encodes the transformed view, in one more pass of the student, and reconstructs the intermediate images.

    `first (batch, patches, hidden_size)` are the student's patch tokens of another view of `shape`, the transformed
    one's too. The images are those that `forward` takes. Gives the outputs `reconstruction_loss`, `mean_image_loss` and
    `reconstructions`.

    Raises:
        ValueError: If images are missing or have another shape.
    """
    config, task = model.config, cast(ReconstructionTask, model.reconstruction)
    if transformed_pixel_values is None or transformed_pixel_values.shape != shape:
        got = None if transformed_pixel_values is None else tuple(transformed_pixel_values.shape)
        raise ValueError(
            f"transformed_pixel_values must have shape {tuple(shape)}, as the view beside it, got {got}; make the views "
            f"with reconstruction={config.reconstruction!r}, or the model with reconstruction=None"
        )
    targets = intermediate_targets(intermediate_pixel_values, transformed_pixel_values, config)
    trunk = cast(ViTTrunkModel, model.base_model)
    second = trunk.patch_tokens(trunk(transformed_pixel_values))
    grid = (shape[-2] // config.patch_size, shape[-1] // config.patch_size)
    loss, reconstructions = task(first, second, targets, grid)
    return {
        "reconstruction_loss": loss,
        "mean_image_loss": mean_image_loss(targets),
        "reconstructions": reconstructions,
    }


def check_reconstruction_views(config: ReconstructingViTConfig, views: object) -> None:
    """Raises a `ValueError` for views whose transformation is not the one that the model reconstructs."""
    for name in ("reconstruction", "num_intermediate"):
        ours, theirs = getattr(views, name), getattr(config, name)
        transformed_for_nothing = name == "reconstruction" and ours is not None
        if ours != theirs and (config.num_decoders or transformed_for_nothing):
            raise ValueError(f"{name} of the views must be the model's, {theirs!r}, got {ours!r}")


class GlobalBatchNorm(nn.Module):
    """Batch normalisation by the batch of all processes, always; without running statistics."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, features)` to the same shape, in float32."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            centered = features - mean_over_processes(features.mean(dim=0))
            variance = mean_over_processes(centered.square().mean(dim=0))
            return centered * torch.rsqrt(variance + 1e-5) * self.weight + self.bias


class Projector(nn.Module):
    """The projector of VICReg and SimCLR: linear layers, batch norm and ReLU between them, the last without bias."""

    def __init__(self, in_features: int, sizes: list[int] | tuple[int, ...]) -> None:
        super().__init__()
        widths = [in_features, *sizes]
        last = len(sizes) - 1
        self.linears = nn.ModuleList(
            nn.Linear(before, after, bias=index < last)
            for index, (before, after) in enumerate(itertools.pairwise(widths))
        )
        self.norms = nn.ModuleList(GlobalBatchNorm(width) for width in sizes[:-1])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, in_features)` to `(batch, sizes[-1])`."""
        *hidden, last = self.linears
        for layer, norm in zip(hidden, self.norms, strict=True):
            projected = layer(features)
            features = F.relu(norm(projected)).to(projected.dtype)  # the norm gives float32
        return last(features)
