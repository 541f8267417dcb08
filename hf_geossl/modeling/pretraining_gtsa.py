"""GTSA pretraining: student, teacher, heads and loss (arXiv 2304.08014)."""

import itertools
from dataclasses import dataclass
from typing import ClassVar, Unpack

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .configuration_gtsa import GTSAConfig
from .geometry import can_check_values, overlap_boxes, roi_align_weights, turn_cells
from .modeling_gtsa import GTSAModel, GTSAPreTrainedModel
from .modeling_vit import init_like_torch, is_part_of
from .objectives import overlap_cosine_loss, patch_correspondence_loss, rotation_loss
from .teacher_student import Teacher, TeacherStudentModel, attached_reconstruction, attached_task


@dataclass
class GTSAForPreTrainingOutput(ModelOutput):
    """The losses, in all and one by one, and what the picture of a run is made of.

    Args:
    loss (`torch.Tensor` of shape `()`): crop + correspondence_weight * correspondence + rotation_weight * rotation
        [+ reconstruction_weight * reconstruction].
    crop_loss, correspondence_loss, rotation_loss (`torch.Tensor` of shape `()`): The parts, unweighted; the first
        two lie in [-1, 1].
    rotation_logits (`torch.Tensor` of shape `(batch, views, 4)`): Scores of 0..3 counter-clockwise quarter turns.
    reconstruction_loss (`torch.Tensor` of shape `()`, *optional*): Mean squared error of normalised pixels; None
        where nothing is reconstructed.
    mean_image_loss (`torch.Tensor` of shape `()`, *optional*): What the batch's mean images would reach.
    reconstructions (`torch.Tensor` of shape `(batch, K, channels, S, S)`, *optional*): Normalised images, one more
        with `reconstruct_final`.
    hidden_states, attentions (`tuple[torch.Tensor, ...]`, *optional*): Of the student on the global views,
        `(batch * globals, tokens, hidden_size)` and `(batch * globals, heads, tokens, tokens)`.
    """

    loss: torch.Tensor | None = None
    crop_loss: torch.Tensor | None = None
    correspondence_loss: torch.Tensor | None = None
    rotation_loss: torch.Tensor | None = None
    rotation_logits: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    mean_image_loss: torch.Tensor | None = None
    reconstructions: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class GTSAConvolution(nn.Conv2d):
    """A convolution of projector or predictor; initialised N(0, initializer_range) with zero bias."""


class GTSAConvolutionBlock(nn.Module):
    """3 x 3 convolution, layer norm over channels without parameters, exact GELU, optionally a residual."""

    def __init__(self, in_channels: int, out_channels: int, residual: bool) -> None:
        super().__init__()
        self.convolution = GTSAConvolution(in_channels, out_channels, 3, padding=1)
        self.residual = residual and in_channels == out_channels

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, in_channels, side, side)` to `(batch, out_channels, side, side)`."""
        hidden = self.convolution(maps).permute(0, 2, 3, 1)
        hidden = F.gelu(F.layer_norm(hidden, hidden.shape[-1:], eps=1e-5)).permute(0, 3, 1, 2)
        return maps + hidden if self.residual else hidden


class GTSAProjector(nn.Module):
    """Patch tokens to the maps that teacher and student are compared in."""

    def __init__(self, config: GTSAConfig) -> None:
        super().__init__()
        hidden_size = config.projector_hidden_size
        self.blocks = nn.ModuleList(
            [
                GTSAConvolutionBlock(config.hidden_size, hidden_size, residual=True),
                GTSAConvolutionBlock(hidden_size, hidden_size, residual=True),
            ]
        )
        self.projection = GTSAConvolution(hidden_size, config.projection_size, 1)

    def forward(self, patch_tokens: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, side ** 2, hidden_size)` to `(batch, projection_size, side, side)`."""
        side = round(patch_tokens.shape[1] ** 0.5)
        maps = patch_tokens.contiguous().transpose(1, 2).unflatten(2, (side, side))  # channels last, as they lie
        for block in self.blocks:
            maps = block(maps)
        return self.projection(maps)


class GTSAPredictor(nn.Module):
    """The student's extra head on top of the projector."""

    def __init__(self, config: GTSAConfig) -> None:
        super().__init__()
        self.block = GTSAConvolutionBlock(config.projection_size, config.predictor_hidden_size, residual=False)
        self.projection = GTSAConvolution(config.predictor_hidden_size, config.projection_size, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, projection_size, side, side)` to the same shape."""
        return self.projection(self.block(maps))


class GTSARotationHead(nn.Module):
    """Predicts a view's quarter turn from its mean patch token; no GELU before the last layer, PyTorch's initialisation."""

    def __init__(self, config: GTSAConfig) -> None:
        super().__init__()
        widths = [config.hidden_size, *config.rotation_hidden_sizes]
        self.linears = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-5) for width in widths[1:])
        self.classifier = nn.Linear(widths[-1], 4)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, hidden_size)` to `(batch, 4)`."""
        last = len(self.linears) - 1
        for index, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            features = norm(linear(features))
            if index < last:
                features = F.gelu(features)
        return self.classifier(features)


class GTSAForPreTraining(GTSAPreTrainedModel, TeacherStudentModel):
    """Student, teacher and the three losses of GTSA; the student trunk is `gtsa`, the teacher's `teacher.gtsa`."""

    auto_map: ClassVar[dict[str, str]] = {
        **GTSAPreTrainedModel.auto_map,
        "AutoModelForPreTraining": "pretraining_gtsa.GTSAForPreTraining",
    }
    main_input_name = "global_pixel_values"

    def __init__(self, config: GTSAConfig) -> None:
        super().__init__(config)
        self.gtsa = GTSAModel(config)
        self.projector = GTSAProjector(config)
        self.predictor = GTSAPredictor(config)
        self.rotation_head = GTSARotationHead(config)
        self.teacher = Teacher(gtsa=GTSAModel(config), projector=GTSAProjector(config))
        self.teacher.gtsa.disable_drop_path()
        self.reconstruction = attached_task(config)  # last, so that all else initialises as without it
        self.post_init()
        self.copy_student_to_teacher()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, GTSAConvolution):
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and is_part_of(self, module, GTSARotationHead):
            init_like_torch(module)
        else:
            super()._init_weights(module)

    def _check_views(
        self,
        global_pixel_values: torch.Tensor,
        local_pixel_values: torch.Tensor | None,
        crop_boxes: torch.Tensor,
        quarter_turns: torch.Tensor,
    ) -> None:
        for name, views in (("global_pixel_values", global_pixel_values), ("local_pixel_values", local_pixel_values)):
            if views is not None and (views.ndim != 5 or (views.shape[1] and views.shape[3] != views.shape[4])):
                raise ValueError(
                    f"{name} must have shape (batch, views, channels, side, side) with square views, "
                    f"got {tuple(views.shape)}"
                )
        batch_size, num_views = global_pixel_values.shape[:2]
        if num_views < 1:
            raise ValueError("global_pixel_values must hold at least one view an image, got none")
        if local_pixel_values is not None:
            if len(local_pixel_values) != batch_size:
                raise ValueError(
                    f"local_pixel_values must hold views of the same {batch_size} images, got {len(local_pixel_values)}"
                )
            num_views += local_pixel_values.shape[1]
        for name, value, shape in (
            ("crop_boxes", crop_boxes, (batch_size, num_views, 4)),
            ("quarter_turns", quarter_turns, (batch_size, num_views)),
        ):
            if value.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, globals first, got {tuple(value.shape)}")
        if can_check_values(quarter_turns) and not bool(((quarter_turns >= 0) & (quarter_turns <= 3)).all()):
            raise ValueError(
                f"quarter_turns must be 0, 1, 2 or 3, got {quarter_turns.min().item()} to {quarter_turns.max().item()}; "
                "divide degrees by 90"
            )

    def _encode(
        self, views: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor, BaseModelOutputWithPooling]:
        """Makes predictions `(B, V, N, C)` and rotation logits `(B, V, 4)` of one group of views, and the trunk's outputs."""
        outputs = self.gtsa(views.flatten(0, 1), **kwargs)
        maps = self.predictor(self.projector(self.gtsa.patch_tokens(outputs)))
        logits = self.rotation_head(outputs.pooler_output)
        shape = views.shape[:2]
        return maps.flatten(2).transpose(1, 2).unflatten(0, shape), logits.unflatten(0, shape), outputs

    @torch.no_grad()
    def _encode_teacher(self, views: torch.Tensor) -> torch.Tensor:
        """Makes the targets `(B, G, N, C)` of the global views."""
        maps = self.teacher.projector(self.gtsa.patch_tokens(self.teacher.gtsa(views.flatten(0, 1))))
        return maps.flatten(2).transpose(1, 2).unflatten(0, views.shape[:2])

    @can_return_tuple
    def forward(
        self,
        global_pixel_values: torch.Tensor,
        local_pixel_values: torch.Tensor | None = None,
        crop_boxes: torch.Tensor | None = None,
        quarter_turns: torch.Tensor | None = None,
        correspondence_weight: float | None = None,
        transformed_pixel_values: torch.Tensor | None = None,
        intermediate_pixel_values: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GTSAForPreTrainingOutput:
        """Computes the losses of a batch of views.

        Args:
            global_pixel_values (`torch.Tensor` of shape `(batch, globals, channels, S, S)`): Global views, at least one.
            local_pixel_values (`torch.Tensor` of shape `(batch, locals, channels, s, s)`, *optional*): Local views.
            crop_boxes (`torch.Tensor` of shape `(batch, views, 4)`): x1, y1, x2, y2 of each crop in pixels of the
                source image, globals first. Every view must overlap every global view.
            quarter_turns (`torch.Tensor` of shape `(batch, views)`): Counter-clockwise quarter turns made, 0..3.
            correspondence_weight (`float`, *optional*): Replaces `config.correspondence_weight`.
            transformed_pixel_values (`torch.Tensor` of shape `(batch, channels, S, S)`, *optional*): The second global view
                (of one, the first) transformed; needed where something is reconstructed, and not read elsewhere.
            intermediate_pixel_values (`torch.Tensor` of shape `(batch, K, channels, S, S)`, *optional*): The intermediate
                images of the transformation, the same.

        Returns:
            `GTSAForPreTrainingOutput`. The pair losses are 0 where there is no pair (one global view, no local one).

        Raises:
            ValueError: If shapes do not fit together, views are not square, the patch does not divide them, or the images
                of the reconstruction are missing.

        Source: arXiv 2304.08014; the reconstruction arXiv 2503.18753.
        """
        if crop_boxes is None or quarter_turns is None:
            raise ValueError("crop_boxes and quarter_turns are needed: take them from GTSAViews with the views")
        if local_pixel_values is not None and local_pixel_values.shape[1] == 0:
            local_pixel_values = None
        self._check_views(global_pixel_values, local_pixel_values, crop_boxes, quarter_turns)
        groups = [global_pixel_values] if local_pixel_values is None else [global_pixel_values, local_pixel_values]
        num_global = global_pixel_values.shape[1]
        sizes = [group.shape[-1] for group in groups for _ in range(group.shape[1])]

        teacher = self._encode_teacher(global_pixel_values)
        encoded = [self._encode(group, **(kwargs if index == 0 else {})) for index, group in enumerate(groups)]
        rotation_logits = torch.cat([logits for _, logits, _ in encoded], dim=1)
        outputs = encoded[0][2]

        with torch.autocast(global_pixel_values.device.type, enabled=False):
            crop_loss, correspondence_loss = self._pair_losses(
                [tokens for tokens, _, _ in encoded], teacher, crop_boxes, quarter_turns, sizes, num_global
            )
            rotation = rotation_loss(rotation_logits, quarter_turns)
            weight = self.config.correspondence_weight if correspondence_weight is None else correspondence_weight
            loss = crop_loss + weight * correspondence_loss + self.config.rotation_weight * rotation

        reconstructed: dict[str, torch.Tensor] = {}
        if self.reconstruction is not None:
            view = global_pixel_values[:, 0]
            tokens = self.gtsa.patch_tokens(outputs).unflatten(0, (-1, num_global))[:, 0]  # (B, N, D)
            reconstructed = attached_reconstruction(
                self, tokens, view.shape, transformed_pixel_values, intermediate_pixel_values
            )
            loss = loss + self.config.reconstruction_weight * reconstructed["reconstruction_loss"]
        return GTSAForPreTrainingOutput(
            loss=loss,
            crop_loss=crop_loss,
            correspondence_loss=correspondence_loss,
            rotation_loss=rotation,
            rotation_logits=rotation_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **reconstructed,
        )

    def _pair_losses(
        self,
        student_groups: list[torch.Tensor],
        teacher: torch.Tensor,
        crop_boxes: torch.Tensor,
        quarter_turns: torch.Tensor,
        sizes: list[int],
        num_global: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes crop and correspondence loss, means over all pairs (global view, other view); `teacher (B, G, N, C)`."""
        teacher_boxes, student_boxes = overlap_boxes(crop_boxes, quarter_turns, sizes, num_global)
        turns = quarter_turns[:, None, :] - quarter_turns[:, :num_global, None]  # (B, G, V), student minus teacher
        patch_size = self.config.patch_size
        teacher = teacher.float()
        teacher_side = sizes[0] // patch_size
        crop, correspondence, first = [], [], 0
        for group, tokens in enumerate(student_groups):
            tokens = tokens.float()  # (B, Vg, N, C)
            views = slice(first, first + tokens.shape[1])
            side, cells = sizes[first] // patch_size, self.config.roi_output_sizes[group]
            weights = roi_align_weights(student_boxes[:, views] / patch_size, cells, side, side)  # (B, Vg, G, k*k, N)
            student_cells = (weights.flatten(2, 3) @ tokens).unflatten(2, (num_global, -1))
            weights = roi_align_weights(teacher_boxes[:, :, views] / patch_size, cells, teacher_side, teacher_side)
            weights = turn_cells(weights, turns[:, :, views])  # (B, G, Vg, k*k, N_t)
            teacher_cells = (weights.flatten(2, 3) @ teacher).unflatten(2, (tokens.shape[1], -1)).transpose(1, 2)
            crop.append(overlap_cosine_loss(student_cells, teacher_cells))  # (Vg, G)
            correspondence.append(patch_correspondence_loss(tokens, teacher, self.config.num_matches[group]))
            first += tokens.shape[1]
        num_pairs = max(num_global * (len(sizes) - 1), 1)
        pairs = 1.0 - torch.eye(len(sizes), num_global, device=teacher.device)  # a view is no pair with itself
        return (torch.cat(crop) * pairs).sum() / num_pairs, (torch.cat(correspondence) * pairs).sum() / num_pairs
