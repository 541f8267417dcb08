"""EquiCoherent pretraining: a host's student, teacher and loss, and the reconstruction task (arXiv 2503.18753)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .configuration_equicoherent import EquiCoherentConfig
from .modeling_equicoherent import (
    EquiCoherentModel,
    EquiCoherentPreTrainedModel,
    PrototypeHead,
    PrototypeLinear,
    SplitHead,
    check_views,
    indices_of,
)
from .objectives import (
    center_and_sharpen,
    dino_loss,
    ema_center,
    ibot_patch_loss,
    koleo_loss,
    masked_patch_weights,
    nt_xent_loss,
    prediction_diversity,
    sinkhorn_knopp,
    sum_over_processes,
    vicreg_loss,
)
from .teacher_student import (
    GlobalBatchNorm,
    Projector,
    ReconstructionTask,
    Teacher,
    TeacherStudentModel,
    intermediate_targets,
    mean_image_loss,
)


@dataclass
class EquiCoherentForPreTrainingOutput(ModelOutput):
    """The losses, in all and one by one, and what was reconstructed.

    Args:
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


class EquiCoherentForPreTraining(EquiCoherentPreTrainedModel, TeacherStudentModel):
    """A host method, and the reconstruction of the intermediate images of a transformation.

    The student trunk is `equicoherent`, the teacher's `teacher.equicoherent`; VICReg and SimCLR have no teacher. Centers are
    buffers; `update_centers` moves them by the scores of the forward passes in training since the last call, of all
    processes. Decoders initialise last, so that all else is equal whatever is reconstructed.
    """

    auto_map: ClassVar[dict[str, str]] = {
        **EquiCoherentPreTrainedModel.auto_map,
        "AutoModelForPreTraining": "pretraining_equicoherent.EquiCoherentForPreTraining",
    }
    main_input_name = "global_pixel_values"
    _keep_in_fp32_modules_strict = ["teacher", "class_center", "patch_center"]
    class_center: torch.Tensor
    patch_center: torch.Tensor
    equicoherent: EquiCoherentModel
    split_head: SplitHead  # this and the heads from `make_heads`
    head: PrototypeHead | Projector
    patch_head: PrototypeHead

    def __init__(self, config: EquiCoherentConfig) -> None:
        super().__init__(config)
        self.equicoherent = EquiCoherentModel(config)
        if config.masks:
            self.equicoherent.embeddings.add_mask_token()  # the student's alone
        for name, head in make_heads(config).items():
            self.add_module(name, head)
        self.teacher = None
        if config.has_teacher:
            self.teacher = Teacher(equicoherent=EquiCoherentModel(config), **make_heads(config))
            self.teacher.equicoherent.disable_drop_path()
        centers = ["class_center", "patch_center"][: 1 + config.masks] if config.has_teacher else []
        for name in centers if config.centering == "softmax" else []:
            self.register_buffer(name, torch.zeros(1, cast(int, config.num_prototypes)))
        self.reconstruction = None
        if config.num_decoders:
            sizes = cast(tuple[int, int], (config.equivariant_features, config.decoder_hidden_size))
            with torch.random.fork_rng(devices=[]):  # what constructors draw is drawn again by post_init
                self.reconstruction = ReconstructionTask(sizes[0], config.num_decoders, sizes[1], config.num_channels)
        self.reset_accumulated()
        in_fp32 = self._keep_in_fp32_modules_strict
        self._keep_in_fp32_modules_strict = [name for name in in_fp32 if getattr(self, name, None) is not None]
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
        """As `TeacherStudentModel.update_teacher`; a `ValueError` if the host has no teacher."""
        if self.teacher is None:
            raise ValueError(f"host {self.config.host!r} has no teacher to update; ibot, dinov2 and dino have one")
        super().update_teacher(momentum)

    @torch.no_grad()
    def _accumulate(self, name: str, total: torch.Tensor, count: int) -> None:
        """Adds scores `total (1, prototypes)` of `count` tokens to those that the next `update_centers` moves by."""
        if self.training and hasattr(self, name):
            added = F.pad(total.float().flatten(), (0, 1), value=count)
            self._accumulated[name] = added + self._accumulated.get(name, 0)

    @torch.no_grad()
    def update_centers(self) -> None:
        """Moves the centers once, by the mean score since the last call, over accumulated batches and all processes.

        Does nothing where the host has none; a center stays where there was no token.
        """
        for name in [name for name in ("class_center", "patch_center") if hasattr(self, name)]:
            center = getattr(self, name)
            packed = self._accumulated.get(name, center.new_zeros(center.numel() + 1))
            packed = sum_over_processes(packed)
            mean = packed[:-1] / packed[-1].clamp_min(1)
            moved = ema_center(center, mean, self.config.center_momentum)
            center.copy_(torch.where(packed[-1] > 0, moved, center))
        self.reset_accumulated()

    def reset_accumulated(self) -> None:
        """Drops the scores of an optimizer step that was skipped."""
        self._accumulated: dict[str, torch.Tensor] = {}  # of each center: sums of the teacher's scores, and how many

    def on_optimizer_step(self, momentum: float) -> None:
        """Moves centers and, where there is one, the teacher; once per optimizer step."""
        self.update_centers()
        if self.teacher is not None:
            self.update_teacher(momentum)

    # ---- The hosts ----

    def invariant(self, module: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Gives the part of tokens `(..., hidden_size)` that goes to the host's head, of this model or of its teacher."""
        return module.split_head(tokens) if self.config.split == "feature" else tokens

    def _scores(self, head: PrototypeHead, features: torch.Tensor) -> torch.Tensor:
        """Computes the host's scores `(..., num_prototypes)`; with the logits split, the first outputs of the head."""
        return head(features)[..., : self.config.num_prototypes]

    def equivariant(self, patches: torch.Tensor) -> torch.Tensor:
        """Gives the part of patch tokens `(..., hidden_size)` that goes to the decoders, `(..., equivariant_features)`."""
        if self.config.split == "feature":
            return self.split_head(patches, equivariant=True)
        return self.head(patches)[..., self.config.num_prototypes :]

    def _teacher_targets(self, scores: torch.Tensor, center: str, temperature: float) -> torch.Tensor:
        """Makes probabilities of the teacher's scores `(..., prototypes)`."""
        if self.config.centering == "softmax":
            return center_and_sharpen(scores, getattr(self, center), temperature)
        balanced = sinkhorn_knopp(scores.flatten(0, -2), temperature, self.config.sinkhorn_iterations)
        return balanced.view(scores.shape)

    @torch.no_grad()
    def _encode_teacher(
        self, views: torch.Tensor, masked: torch.Tensor | None, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Makes the probabilities of the class tokens `(2, B, K)` and of the masked patches `(M, K)` of views `(B, 2, ...)`.

        `masked (M,)` are raster indices among the patches of all views.
        """
        teacher = self.teacher
        outputs = teacher.equicoherent(views.flatten(0, 1))
        scores = self._scores(teacher.head, self.invariant(teacher, outputs.pooler_output))  # (2B, K)
        self._accumulate("class_center", scores.sum(dim=0, keepdim=True), len(scores))
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
            self._accumulate("patch_center", mean * len(features), len(features))
            if masked is None:
                return targets, None
            scores = head.prototypes(features.index_select(0, masked))[:, : self.config.num_prototypes]
        else:
            chosen = patches.flatten(0, 1).index_select(0, masked)  # (M, D)
            scores = self._scores(head, self.invariant(teacher, chosen))  # (M, K)
            self._accumulate("patch_center", scores.sum(dim=0, keepdim=True), len(scores))
        return targets, self._teacher_targets(scores, "patch_center", temperature)

    def _prototype_losses(
        self,
        views: torch.Tensor,
        class_tokens: torch.Tensor,
        patches: torch.Tensor,
        masked: torch.Tensor | None,
        patch_weights: torch.Tensor | None,
        local_pixel_values: torch.Tensor | None,
        temperature: float,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Computes the loss of DINO, iBOT or DINOv2 and its parts; `class_tokens (B, 2, D)`, `patches (2B, N, D)`.

        `masked (M,)` are raster indices among the patches of both views, `patch_weights (M,)` their weights.
        """
        config = self.config
        targets, patch_targets = self._encode_teacher(views, masked, temperature)
        students, own_head = class_tokens, cast(PrototypeHead, self.head)
        if local_pixel_values is not None:
            local = self.equicoherent(local_pixel_values.flatten(0, 1)).pooler_output
            students = torch.cat([students, local.unflatten(0, local_pixel_values.shape[:2])], dim=1)
        scores = self._scores(own_head, self.invariant(self, students)).transpose(0, 1)  # (V, B, K)
        components = {"class_loss": dino_loss(scores, targets, config.student_temperature)}
        loss = config.class_loss_weight * components["class_loss"]
        if config.masks:
            if masked is None or patch_weights is None:
                components["patch_loss"] = 0.0 * components["class_loss"].detach()
            else:
                head = own_head if config.shared_head else self.patch_head
                chosen = patches.flatten(0, 1).index_select(0, masked)  # (M, D)
                scores = self._scores(head, self.invariant(self, chosen))  # (M, K)
                components["patch_loss"] = ibot_patch_loss(
                    scores, cast(torch.Tensor, patch_targets), patch_weights, config.student_temperature
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
        """Computes the loss of VICReg or SimCLR and its parts; `class_tokens (B, 2, D)`, `patches (2B, N, D)`."""
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
        masked_patches: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EquiCoherentForPreTrainingOutput:
        """Computes the losses of a batch of views.

        Args:
            global_pixel_values (`torch.Tensor` of shape `(batch, 2, channels, S, S)`): Global views; the second is the
                last state of the transformation.
            local_pixel_values (`torch.Tensor` of shape `(batch, locals, channels, s, s)`, *optional*): Local views, for
                hosts with a teacher.
            intermediate_pixel_values (`torch.Tensor` of shape `(batch, K, channels, S, S)`, *optional*): The images
                between; needed where something is reconstructed.
            bool_masked_pos (`torch.Tensor` of shape `(batch, 2, patches)`, bool, *optional*): Patches of the global views
                that are masked for the student; `(batch, patches)` are the same in both. Hosts that do not mask ignore it.
            teacher_temperature (`float`, *optional*): Above 0; replaces `config.teacher_temperature`.
            masked_patches (`torch.Tensor` of shape `(masked,)`, *optional*): Where `bool_masked_pos` is True, raster indices
                in `(batch, 2, patches)`; where absent, the host waits for the device to count them.

        Returns:
            `EquiCoherentForPreTrainingOutput`.

        Raises:
            ValueError: If shapes do not fit together, intermediate images are missing, the temperature is out of range,
                or the batch is too small for the host: DINOv2 needs two images a process, VICReg and SimCLR without
                reconstruction two in all.

        Source: arXiv 2503.18753, L = L_SSL(z_inv) + lambda L_recon.
        """
        config = self.config
        if local_pixel_values is not None and local_pixel_values.shape[1] == 0:
            local_pixel_values = None
        if bool_masked_pos is not None and bool_masked_pos.ndim == 2:
            bool_masked_pos = bool_masked_pos[:, None].expand(-1, 2, -1)
        check_views(config, global_pixel_values, local_pixel_values, bool_masked_pos if config.masks else None)
        masked = patch_weights = None
        if config.masks and bool_masked_pos is not None:
            masked = bool_masked_pos.flatten(0, 1)  # (2B, N)
            masked_patches = indices_of(masked) if masked_patches is None else masked_patches
            patch_weights = masked_patch_weights(masked, masked_patches)
        else:
            masked_patches = None
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
                global_pixel_values,
                class_tokens,
                patches,
                masked_patches,
                patch_weights,
                local_pixel_values,
                temperature,
            )
        else:
            host_loss, components = self._pair_losses(class_tokens, patches)

        loss, reconstruction, reconstructions = host_loss, None, None
        if self.reconstruction is not None:
            if config.recon_unmasked and masked is not None:
                patches = self.equicoherent.patch_tokens(self.equicoherent(views))
            targets = intermediate_targets(intermediate_pixel_values, global_pixel_values[:, 1], config)
            first, second = self.equivariant(patches).unflatten(0, (-1, 2)).unbind(1)  # (B, N, d_equi) each
            grid = (views.shape[-2] // config.patch_size, views.shape[-1] // config.patch_size)
            reconstruction, reconstructions = self.reconstruction(first, second, targets, grid)
            components["mean_image_loss"] = mean_image_loss(targets)
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


def make_heads(config: EquiCoherentConfig) -> dict[str, nn.Module]:
    """Makes the split and the host's heads, by the names that student and teacher have them under."""
    inputs, patch_features = config.hidden_size, cast(int, config.patch_features)
    heads: dict[str, nn.Module] = {}
    if config.split == "feature":
        equivariant_features = cast(int, config.equivariant_features)
        heads["split_head"] = SplitHead(inputs, patch_features, equivariant_features)
        inputs = patch_features - equivariant_features
    if not config.has_teacher:
        return {**heads, "head": Projector(inputs, config.projector_sizes)}
    outputs = patch_features if config.split == "logits" else cast(int, config.num_prototypes)
    heads["head"] = PrototypeHead(inputs, outputs, config)
    if config.masks and not config.shared_head:
        heads["patch_head"] = PrototypeHead(inputs, outputs, config)
    return heads
