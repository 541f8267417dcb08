"""EquiCoherent pretraining: a host's student, teacher and loss, and the reconstruction task (arXiv 2503.18753)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_equicoherent import EquiCoherentConfig
from .heads_equicoherent import GlobalBatchNorm, Projector, PrototypeHead, PrototypeLinear, SplitHead
from .modeling_equicoherent import EquiCoherentModel, EquiCoherentPreTrainedModel
from .modeling_vit import ViTDropPath
from .objectives import reconstruction_loss
from .objectives_joint_embedding import (
    center_and_sharpen,
    dino_loss,
    ema_center,
    ibot_patch_loss,
    koleo_loss,
    masked_patch_weights,
    nt_xent_loss,
    prediction_diversity,
    sinkhorn_knopp,
    vicreg_loss,
)
from .reconstruction import ReconstructionTask, intermediate_targets
from .teacher_student import TeacherStudentModel


@dataclass
class EquiCoherentForPreTrainingOutput(ModelOutput):
    """Args:
    loss (`torch.Tensor` of shape `()`): host_loss + reconstruction_weight * reconstruction_loss.
    host_loss (`torch.Tensor` of shape `()`): The host's whole loss.
    reconstruction_loss (`torch.Tensor` of shape `()`, *optional*): Mean squared error of normalised pixels; None
        where nothing is reconstructed.
    components (`dict[str, torch.Tensor]`): The host's parts, unweighted: `class_loss`, `patch_loss`, `koleo_loss`;
        `invariance_loss`, `variance_loss`, `covariance_loss`; or `contrast_loss`; with a teacher also
        `teacher_entropy` and `prediction_diversity` of its class tokens, in nats, without gradient; where something
        is reconstructed also `mean_image_loss`, what the mean images of this
        process's batch would reach as reconstructions.
    reconstructions (`torch.Tensor` of shape `(batch, K, channels, S, S)`, *optional*): Normalised images, one more
        with `reconstruct_final`.
    hidden_states, attentions (`tuple[torch.Tensor, ...]`, *optional*): Of the student on the global views,
        `(batch * 2, tokens, hidden_size)` and `(batch * 2, heads, tokens, tokens)`.
    """

    loss: torch.Tensor | None = None
    host_loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    components: dict[str, torch.Tensor] | None = None
    reconstructions: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def _add_heads(module: Any, config: Any) -> None:
    """Gives a module the split and the host's heads: student and teacher have the same."""
    inputs = config.hidden_size
    if config.split == "feature":
        module.split_head = SplitHead(inputs, config.patch_features, config.equivariant_features)
        inputs = module.split_head.invariant_features
    if not config.has_teacher:
        module.head = Projector(inputs, config.projector_sizes)
        return
    outputs = config.patch_features if config.split == "logits" else config.num_prototypes
    module.head = PrototypeHead(inputs, outputs, config)
    if config.masks and not config.shared_head:
        module.patch_head = PrototypeHead(inputs, outputs, config)


class EquiCoherentTeacher(nn.Module):
    """The momentum copy of trunk, split and heads, without stochastic depth; it gets no gradient."""

    def __init__(self, config: EquiCoherentConfig) -> None:
        super().__init__()
        self.equicoherent = EquiCoherentModel(config)
        _add_heads(self, config)
        for module in self.modules():
            if isinstance(module, ViTDropPath):
                module.rate = 0.0
        self.requires_grad_(False)


class EquiCoherentForPreTraining(EquiCoherentPreTrainedModel, TeacherStudentModel):
    """A host method, and the reconstruction of images on the way of a transformation. The student trunk is `equicoherent`,
    the teacher's `teacher.equicoherent`; VICReg and SimCLR have no teacher.

    Centers are buffers; `update_centers` moves them by what the forward passes in training since the last call have
    seen, of all processes. Decoders initialise last, so that all else is equal whatever is reconstructed.
    """

    auto_map: ClassVar[dict[str, str]] = {
        **EquiCoherentPreTrainedModel.auto_map,
        "AutoModelForPreTraining": "pretraining_equicoherent.EquiCoherentForPreTraining",
    }
    main_input_name = "global_pixel_values"
    _keep_in_fp32_modules_strict = ["teacher", "class_center", "patch_center"]
    class_center: torch.Tensor
    patch_center: torch.Tensor
    equicoherent: Any
    split_head: Any  # this and the heads from _add_heads
    head: Any
    patch_head: Any
    teacher: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.equicoherent = EquiCoherentModel(config)
        if config.masks:
            self.equicoherent.embeddings.add_mask_token()  # the student's alone
        _add_heads(self, config)
        self.teacher = EquiCoherentTeacher(config) if config.has_teacher else None
        if config.has_teacher and config.centering == "softmax":
            self.register_buffer("class_center", torch.zeros(1, config.num_prototypes))
            if config.masks:
                self.register_buffer("patch_center", torch.zeros(1, config.num_prototypes))
        self.reconstruction = None
        if config.num_decoders:
            with torch.random.fork_rng(devices=[]):  # what constructors draw is drawn again by post_init
                self.reconstruction = ReconstructionTask(
                    config.equivariant_features, config.num_decoders, config.decoder_hidden_size, config.num_channels
                )
        self._seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # sums of the teacher's scores, and how many
        kept = self._keep_in_fp32_modules_strict
        self._keep_in_fp32_modules_strict = [name for name in kept if getattr(self, name, None) is not None]
        self.post_init()
        self.copy_student_to_teacher()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PrototypeLinear) and module.scale is not None:
            init.ones_(module.scale)
        elif isinstance(module, GlobalBatchNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, EquiCoherentForPreTraining):
            for _, center in module.named_buffers(recurse=False):
                init.zeros_(center)

    # ---- State that moves once per optimizer step ----

    def update_teacher(self, momentum: float) -> None:
        """Moves the teacher once, see `TeacherStudentModel.update_teacher`.

        Args:
            momentum (`float`): In [0, 1].

        Raises:
            ValueError: If the host has no teacher.
        """
        if self.teacher is None:
            raise ValueError(f"host {self.config.host!r} has no teacher to update; ibot, dinov2 and dino have one")
        super().update_teacher(momentum)

    @torch.no_grad()
    def _see(self, name: str, total: torch.Tensor, count: int) -> None:
        """Adds scores `total (1, prototypes)` of `count` tokens to what the next `update_centers` moves by."""
        if not self.training or not hasattr(self, name):
            return
        seen = (total.float(), total.new_tensor(count, dtype=torch.float32))
        before = self._seen.get(name)
        self._seen[name] = seen if before is None else (before[0] + seen[0], before[1] + seen[1])

    @torch.no_grad()
    def update_centers(self) -> None:
        """Moves the centers once, by the mean score since the last call, over accumulated batches and all processes. Does
        nothing where the host has none; a center stays where no token was seen.
        """
        for name in [name for name in ("class_center", "patch_center") if hasattr(self, name)]:
            center = getattr(self, name)
            total, count = self._seen.get(name, (torch.zeros_like(center), center.new_zeros(())))
            packed = torch.cat([total.flatten(), count[None]])
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(packed)
            mean = packed[:-1] / packed[-1].clamp_min(1)
            moved = ema_center(center, mean, self.config.center_momentum)
            center.copy_(torch.where(packed[-1] > 0, moved, center))
        self.reset_accumulated()

    def reset_accumulated(self) -> None:
        """Forgets the scores of an optimizer step that did not come about."""
        self._seen = {}

    def on_optimizer_step(self, momentum: float) -> None:
        """Moves centers and, where there is one, the teacher; once per optimizer step."""
        self.update_centers()
        if self.teacher is not None:
            self.update_teacher(momentum)

    # ---- Checks ----

    def _check_views(
        self,
        global_pixel_values: torch.Tensor,
        local_pixel_values: torch.Tensor | None,
        bool_masked_pos: torch.Tensor | None,
    ) -> None:
        if global_pixel_values.ndim != 5 or global_pixel_values.shape[1] != 2:
            raise ValueError(
                "global_pixel_values must have shape (batch, 2, channels, height, width), the second view transformed, "
                f"got {tuple(global_pixel_values.shape)}; make two global views an image and stack them"
            )
        if (host := self.config.host) in ("dinov2", "vicreg", "simclr"):
            of_all = host != "dinov2" and torch.distributed.is_available() and torch.distributed.is_initialized()
            images = len(global_pixel_values) * (torch.distributed.get_world_size() if of_all else 1)
            if images < 2:
                raise ValueError(
                    f"global_pixel_values must hold at least 2 images for the host {host!r}, which compares the images of "
                    f"a batch{' on each process' if host == 'dinov2' else ''}, got {images}; give larger batches"
                )
        if local_pixel_values is not None:
            if not self.config.has_teacher:
                raise ValueError(
                    f"host {self.config.host!r} compares two global views and takes no local ones; got "
                    f"local_pixel_values of shape {tuple(local_pixel_values.shape)}, make them with num_local=0"
                )
            if local_pixel_values.ndim != 5 or len(local_pixel_values) != len(global_pixel_values):
                raise ValueError(
                    f"local_pixel_values must have shape ({len(global_pixel_values)}, views, channels, height, width), "
                    f"got {tuple(local_pixel_values.shape)}; stack the local views of each image"
                )
        if bool_masked_pos is not None:
            patches = global_pixel_values[0, 0, 0].numel() // self.config.patch_size**2
            if bool_masked_pos.shape != (len(global_pixel_values), 2, patches):
                raise ValueError(
                    f"bool_masked_pos must have shape {(len(global_pixel_values), 2, patches)}, "
                    f"got {tuple(bool_masked_pos.shape)}; mask the patches of both global views at their size"
                )

    # ---- The hosts ----

    def invariant(self, module: Any, tokens: torch.Tensor) -> torch.Tensor:
        """What the host's head of student or teacher sees of tokens `(..., hidden_size)`."""
        return module.split_head(tokens) if self.config.split == "feature" else tokens

    def _scores(self, head: PrototypeHead, features: torch.Tensor) -> torch.Tensor:
        """The host's scores `(..., num_prototypes)`; with the logits split, the first outputs of the head."""
        return head(features)[..., : self.config.num_prototypes]

    def equivariant(self, patches: torch.Tensor) -> torch.Tensor:
        """What decoders see of patch tokens `(..., hidden_size)`: `(..., equivariant_features)`."""
        if self.config.split == "feature":
            return self.split_head(patches, equivariant=True)
        return self.head(patches)[..., self.config.num_prototypes :]

    def _teacher_targets(self, scores: torch.Tensor, center: str, temperature: float) -> torch.Tensor:
        """Probabilities of the teacher's scores `(..., prototypes)`."""
        if self.config.centering == "softmax":
            return center_and_sharpen(scores, getattr(self, center), temperature)
        balanced = sinkhorn_knopp(scores.flatten(0, -2), temperature, self.config.sinkhorn_iterations)
        return balanced.view(scores.shape)

    @torch.no_grad()
    def _encode_teacher(
        self, views: torch.Tensor, masked: torch.Tensor | None, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Probabilities of the class tokens `(2, B, K)` and of the masked patches `(M, K)` of views `(B, 2, ...)`."""
        teacher = self.teacher
        outputs = teacher.equicoherent(views.flatten(0, 1))
        scores = self._scores(teacher.head, self.invariant(teacher, outputs.pooler_output))  # (2B, K)
        self._see("class_center", scores.sum(dim=0, keepdim=True), len(scores))
        targets = self._teacher_targets(scores.unflatten(0, (-1, 2)).transpose(0, 1), "class_center", temperature)
        of_all_patches = self.config.host == "ibot" and self.training  # iBOT's center, whatever is masked
        if masked is None and not of_all_patches:
            return targets, None
        head = teacher.head if self.config.shared_head else teacher.patch_head
        patches = teacher.equicoherent.patch_tokens(outputs)
        if of_all_patches:
            features = head.bottleneck(self.invariant(teacher, patches)).flatten(0, 1)
            # the last layer is linear: the mean of scores is the score of the mean
            mean = head.prototypes(features.mean(dim=0, keepdim=True))[:, : self.config.num_prototypes]
            self._see("patch_center", mean * len(features), len(features))
            if masked is None:
                return targets, None
            scores = head.prototypes(features[masked.flatten()])[:, : self.config.num_prototypes]
        else:
            scores = self._scores(head, self.invariant(teacher, patches[masked]))  # (M, K)
            self._see("patch_center", scores.sum(dim=0, keepdim=True), len(scores))
        return targets, self._teacher_targets(scores, "patch_center", temperature)

    def _prototype_losses(
        self,
        views: torch.Tensor,
        class_tokens: torch.Tensor,
        patches: torch.Tensor,
        masked: torch.Tensor | None,
        local_pixel_values: torch.Tensor | None,
        temperature: float,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of DINO, iBOT or DINOv2 and its parts; `class_tokens (B, 2, D)`, `patches (2B, N, D)`."""
        config = self.config
        targets, patch_targets = self._encode_teacher(views, masked, temperature)
        students = class_tokens
        if local_pixel_values is not None:
            local = self.equicoherent(local_pixel_values.flatten(0, 1)).pooler_output
            students = torch.cat([students, local.unflatten(0, local_pixel_values.shape[:2])], dim=1)
        scores = self._scores(self.head, self.invariant(self, students)).transpose(0, 1)  # (V, B, K)
        components = {"class_loss": dino_loss(scores, targets, config.student_temperature)}
        loss = config.class_loss_weight * components["class_loss"]
        if config.masks:
            if masked is None:
                components["patch_loss"] = 0.0 * components["class_loss"].detach()
            else:
                head = self.head if config.shared_head else self.patch_head
                scores = self._scores(head, self.invariant(self, patches[masked]))  # (M, K)
                components["patch_loss"] = ibot_patch_loss(
                    scores, cast(torch.Tensor, patch_targets), masked_patch_weights(masked), config.student_temperature
                )
            loss = loss + config.patch_loss_weight * components["patch_loss"]
        if config.host == "dinov2":
            components["koleo_loss"] = koleo_loss(class_tokens[:, 0]) + koleo_loss(class_tokens[:, 1])
            loss = loss + config.koleo_weight * components["koleo_loss"]
        targets = targets.flatten(0, 1)
        components["teacher_entropy"] = torch.special.entr(targets).sum(dim=-1).mean()
        components["prediction_diversity"] = prediction_diversity(targets)
        return loss, components

    def _pair_losses(
        self, class_tokens: torch.Tensor, patches: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of VICReg or SimCLR and its parts; `class_tokens (B, 2, D)`, `patches (2B, N, D)`."""
        config = self.config
        pooled = class_tokens if config.pool == "class" else patches.mean(dim=1).unflatten(0, (-1, 2))
        # the split is linear: its mean over patches is the split of their mean
        first, second = (self.head(self.invariant(self, pooled[:, view])) for view in range(2))
        if config.host == "simclr":
            loss = nt_xent_loss(first, second, config.contrast_temperature)
            return loss, {"contrast_loss": loss}
        weights = (config.invariance_weight, config.variance_weight, config.covariance_weight)
        loss, *parts = vicreg_loss(first, second, *weights)
        return loss, dict(zip(("invariance_loss", "variance_loss", "covariance_loss"), parts, strict=True))

    @can_return_tuple
    def forward(
        self,
        global_pixel_values: torch.Tensor,
        local_pixel_values: torch.Tensor | None = None,
        intermediate_pixel_values: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        teacher_temperature: float | None = None,
        **kwargs: Any,
    ) -> EquiCoherentForPreTrainingOutput:
        """Args:
            global_pixel_values (`torch.Tensor` of shape `(batch, 2, channels, S, S)`): Global views; the second is the
                last state of the transformation.
            local_pixel_values (`torch.Tensor` of shape `(batch, locals, channels, s, s)`, *optional*): Local views, for
                hosts with a teacher.
            intermediate_pixel_values (`torch.Tensor` of shape `(batch, K, channels, S, S)`, *optional*): The images
                between; needed where something is reconstructed.
            bool_masked_pos (`torch.Tensor` of shape `(batch, 2, patches)`, bool, *optional*): Patches of the global views
                that the student does not see; `(batch, patches)` are the same in both. Hosts that do not mask ignore it.
            teacher_temperature (`float`, *optional*): Above 0; replaces `config.teacher_temperature`.

        Returns:
            `EquiCoherentForPreTrainingOutput`.

        Raises:
            ValueError: If shapes do not fit together, intermediate images are missing, the temperature is out of range,
                or the batch is too small for the host: DINOv2 needs two images a process, VICReg and SimCLR two in all.

        Source: arXiv 2503.18753, L = L_SSL(z_inv) + lambda L_recon.
        """
        config = self.config
        if local_pixel_values is not None and local_pixel_values.shape[1] == 0:
            local_pixel_values = None
        if bool_masked_pos is not None and bool_masked_pos.ndim == 2:
            bool_masked_pos = bool_masked_pos[:, None].expand(-1, 2, -1)
        self._check_views(global_pixel_values, local_pixel_values, bool_masked_pos if config.masks else None)
        masked = None
        if config.masks and bool_masked_pos is not None:
            masked = bool_masked_pos.flatten(0, 1)  # (2B, N)
        temperature = config.teacher_temperature if teacher_temperature is None else teacher_temperature
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"teacher_temperature must be above 0, got {temperature}; None takes the configuration's, "
                f"{config.teacher_temperature}"
            )

        views = global_pixel_values.flatten(0, 1)  # (B, 2, ...) -> (2B, ...)
        outputs = self.equicoherent(views, bool_masked_pos=masked, **kwargs)
        class_tokens = outputs.pooler_output.unflatten(0, (-1, 2))
        patches = self.equicoherent.patch_tokens(outputs)
        if config.has_teacher:
            host_loss, components = self._prototype_losses(
                global_pixel_values, class_tokens, patches, masked, local_pixel_values, temperature
            )
        else:
            host_loss, components = self._pair_losses(class_tokens, patches)

        loss, reconstruction, reconstructions = host_loss, None, None
        if self.reconstruction is not None:
            targets = intermediate_targets(intermediate_pixel_values, global_pixel_values[:, 1], config)
            if config.recon_unmasked and masked is not None:
                patches = self.equicoherent.patch_tokens(self.equicoherent(views))
            first, second = self.equivariant(patches).unflatten(0, (-1, 2)).unbind(1)  # (B, N, d_equi) each
            grid = (views.shape[-2] // config.patch_size, views.shape[-1] // config.patch_size)
            reconstruction, reconstructions = self.reconstruction(first, second, targets, grid)
            components["mean_image_loss"] = reconstruction_loss(
                targets.mean(dim=0, keepdim=True).expand_as(targets), targets
            )
            loss = host_loss + config.reconstruction_weight * reconstruction
        return EquiCoherentForPreTrainingOutput(
            loss=loss,
            host_loss=host_loss,
            reconstruction_loss=reconstruction,
            components=components,
            reconstructions=reconstructions,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["EquiCoherentForPreTraining", "EquiCoherentForPreTrainingOutput"]
