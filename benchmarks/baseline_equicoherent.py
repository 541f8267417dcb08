"""
EquiCoherent's step on iBOT as a plain eager program: a pass a view size, heads on all patches, loops over pairs of views.

Written from the formulas (arXiv 2503.18753, 2111.07832); parameters have the names of `EquiCoherentForPreTraining`.
"""

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.baseline_vit import PlainViT, move_teacher


class PlainPrototypes(nn.Module):
    """Prototypes of unit length, each with its own scale."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.scale = nn.Parameter(torch.ones(outputs, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(..., inputs)` to `(..., outputs)`."""
        return F.linear(x, self.scale * self.weight / self.weight.norm(dim=1, keepdim=True))


class PlainHead(nn.Module):
    """An MLP, unit length, prototypes."""

    def __init__(self, inputs: int, config: Any) -> None:
        super().__init__()
        widths = [inputs, config.head_hidden_size, config.head_hidden_size, config.head_bottleneck_size]
        self.linears = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])
        self.prototypes = PlainPrototypes(widths[-1], config.num_prototypes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(..., inputs)` to `(..., prototypes)`."""
        x = F.gelu(self.linears[0](x))
        x = self.linears[2](F.gelu(self.linears[1](x)))
        return self.prototypes(F.normalize(x, dim=-1))


class PlainDecoder(nn.Module):
    """Tokens of two views to an image."""

    def __init__(self, inputs: int, hidden: int, channels: int) -> None:
        super().__init__()
        widths = [hidden, hidden // 2, hidden // 4, hidden // 8, channels]
        self.linear = nn.Linear(inputs, hidden)
        self.convolutions = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, side ** 2, inputs)` to `(batch, channels, 16 * side, 16 * side)`."""
        side = int(tokens.shape[1] ** 0.5)
        x = self.linear(tokens).transpose(1, 2).reshape(len(tokens), -1, side, side)
        for index, convolution in enumerate(self.convolutions):
            x = convolution(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))
            if index < len(self.convolutions) - 1:
                x = F.gelu(x)
        return x


class PlainEquiCoherent(nn.Module):
    """Student, teacher and losses of iBOT with the reconstruction, split after the trunk, shared head."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.invariant = config.patch_features - config.equivariant_features
        self.equicoherent = PlainViT(config, config.drop_path_rate, mask_token=True)
        self.teacher = nn.Module()
        self.teacher.equicoherent = PlainViT(config, 0.0)
        for module in (self, self.teacher):
            module.split_head = nn.Linear(config.hidden_size, config.patch_features)
            module.head = PlainHead(self.invariant, config)
        self.teacher.requires_grad_(False)
        self.register_buffer("class_center", torch.zeros(1, config.num_prototypes))
        self.register_buffer("patch_center", torch.zeros(1, config.num_prototypes))
        self.reconstruction = nn.Module()
        self.reconstruction.decoders = nn.ModuleList(
            [
                PlainDecoder(2 * config.equivariant_features, config.decoder_hidden_size, config.num_channels)
                for _ in range(config.num_intermediate)
            ]
        )
        self.seen: list[torch.Tensor] = []

    @staticmethod
    def prepare(batch: dict[str, Any]) -> dict[str, Any]:
        """What the data loader adds to a batch of views: nothing; masked patches are counted in the step."""
        return {name: value for name, value in batch.items() if name != "masked_patches"}

    @torch.no_grad()
    def on_optimizer_step(self, momentum: float) -> None:
        """Moves centers and teacher."""
        if self.seen:
            kept = self.config.center_momentum
            for center, mean in zip((self.class_center, self.patch_center), self.seen, strict=True):
                center.copy_(center * kept + mean * (1 - kept))
        move_teacher(self.teacher, self, momentum)

    def forward(
        self,
        global_pixel_values: torch.Tensor,
        local_pixel_values: torch.Tensor,
        intermediate_pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor,
        **records: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The losses by name."""
        config = self.config
        batch_size = len(global_pixel_values)
        views = global_pixel_values.transpose(0, 1).flatten(0, 1)  # (2B, ...), a view after the other
        masked = bool_masked_pos.transpose(0, 1).flatten(0, 1)
        with torch.no_grad():
            scores = self.teacher.head(self.teacher.split_head(self.teacher.equicoherent(views))[..., : self.invariant])
            class_scores, patch_scores = scores[:, 0], scores[:, 1:]
            self.seen = [class_scores.mean(dim=0, keepdim=True), patch_scores.mean(dim=(0, 1))[None]]
            temperature = config.teacher_temperature
            class_targets = ((class_scores - self.class_center) / temperature).softmax(dim=-1).chunk(2)
            patch_targets = ((patch_scores - self.patch_center) / temperature).softmax(dim=-1).chunk(2)

        tokens = self.equicoherent(views, masked=masked)
        features = self.split_head(tokens)
        scores = self.head(features[..., : self.invariant])
        local = self.equicoherent(local_pixel_values.transpose(0, 1).flatten(0, 1))[:, 0]
        local_scores = self.head(self.split_head(local)[..., : self.invariant])
        students = [*scores[:, 0].chunk(2), *local_scores.split(batch_size)]
        patches = scores[:, 1:].chunk(2)

        class_terms, patch_terms = [], []
        for q in range(2):
            for v, student in enumerate(students):
                if v == q:
                    mask = masked.chunk(2)[v]
                    logits = patches[v] / config.student_temperature
                    entropy = -(patch_targets[q] * logits.log_softmax(dim=-1)).sum(dim=-1)
                    patch_terms.append(((entropy * mask).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1.0)).mean())
                else:
                    logits = student / config.student_temperature
                    class_terms.append(-(class_targets[q] * logits.log_softmax(dim=-1)).sum(dim=-1).mean())
        class_loss, patch_loss = torch.stack(class_terms).mean(), torch.stack(patch_terms).mean()

        first, second = features[:, 1:, self.invariant :].chunk(2)
        pairs = torch.cat([first, second], dim=-1)
        errors = [
            F.mse_loss(decoder(pairs), intermediate_pixel_values[:, k])
            for k, decoder in enumerate(self.reconstruction.decoders)
        ]
        reconstruction = torch.stack(errors).mean()
        return {
            "class_loss": class_loss,
            "patch_loss": patch_loss,
            "reconstruction_loss": reconstruction,
            "loss": class_loss + patch_loss + config.reconstruction_weight * reconstruction,
        }
