"""
LOCA's step as a plain eager program: a pass each for reference, random query and focal queries, each query by itself.

Written from the formulas (arXiv 2212.02400); parameters have the names of `LOCAForPreTraining`.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.baseline_vit import PlainMLP, PlainViT, move_teacher


class PlainClusterHead(nn.Module):
    """Tokens to cosines with the prototypes."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.head_hidden_size)
        self.fc2 = nn.Linear(config.head_hidden_size, config.head_hidden_size)
        self.fc3 = nn.Linear(config.head_hidden_size, config.head_bottleneck_size)
        self.prototypes = nn.Linear(config.head_bottleneck_size, config.num_prototypes, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` to `(batch * tokens, prototypes)`."""
        x = F.gelu(self.fc1(tokens), approximate="tanh")
        x = self.fc3(F.gelu(self.fc2(x), approximate="tanh")).flatten(0, 1)
        x = x / x.norm(dim=-1, keepdim=True)
        weight = self.prototypes.weight
        return x @ (weight / (weight.norm(dim=1, keepdim=True) + 1e-10)).t()


class PlainCrossAttention(nn.Module):
    """Attention of queries to references, with the weights written out."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.scale = (config.hidden_size // self.heads) ** -0.5
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, queries: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` and `(batch, visible, hidden_size)` to the shape of the first."""

        def split(x: torch.Tensor) -> torch.Tensor:
            return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

        key, value = (split(part) for part in self.key_value(references).chunk(2, dim=-1))
        weights = ((split(self.query(queries)) @ key.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.projection((weights @ value).transpose(1, 2).reshape(queries.shape))


class PlainCrossBlock(nn.Module):
    """A block that looks at the reference."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm_key_value = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = PlainCrossAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = PlainMLP(config)

    def forward(self, queries: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """As `PlainCrossAttention.forward`."""
        queries = queries + self.attention(self.norm_query(queries), self.norm_key_value(references))
        return queries + self.mlp(self.norm2(queries))


def add_heads(module: nn.Module, config: Any) -> None:
    """Gives student and teacher the same heads."""
    module.cluster_head = PlainClusterHead(config)
    module.cross_attention = PlainCrossBlock(config)
    module.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
    module.position_predictor = nn.Linear(config.hidden_size, (config.image_size // config.patch_size) ** 2)


class PlainLOCA(nn.Module):
    """Student, teacher and losses."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.loca = PlainViT(config, config.drop_path_rate)
        add_heads(self, config)
        self.teacher = nn.Module()
        self.teacher.loca = PlainViT(config, config.drop_path_rate)
        add_heads(self.teacher, config)
        self.teacher.requires_grad_(False)

    @staticmethod
    def prepare(batch: dict[str, Any]) -> dict[str, Any]:
        """What the data loader adds to a batch of views: nothing."""
        return batch

    def on_optimizer_step(self, momentum: float) -> None:
        """Moves the teacher."""
        move_teacher(self.teacher, self, momentum)

    def forward(
        self,
        reference_pixel_values: torch.Tensor,
        random_query_pixel_values: torch.Tensor,
        focal_query_pixel_values: torch.Tensor,
        random_query_positions: torch.Tensor,
        focal_query_positions: torch.Tensor,
        kept_query_tokens: torch.Tensor | None = None,
        visible_reference_tokens: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The losses by name; draws the same indices as ours where none are given."""
        config, device = self.config, reference_pixel_values.device
        num_references = self.position_predictor.out_features
        if visible_reference_tokens is None:
            visible = int(config.visible_reference_ratio * num_references)
            start = int(torch.randint(num_references - visible + 1, ()))
            visible_reference_tokens = torch.arange(start, start + visible)
        if kept_query_tokens is None:
            kept_query_tokens = torch.randperm(random_query_positions.shape[1])[: config.num_kept_query_tokens]
        visible, kept = visible_reference_tokens.to(device), kept_query_tokens.to(device)

        with torch.no_grad():
            references = self.teacher.loca(reference_pixel_values)
            cosines = self.teacher.cluster_head(references)  # (B * N, P)
            balanced = (cosines / config.teacher_temperature).softmax(dim=-1)
            for _ in range(config.sinkhorn_iterations):
                balanced = balanced / balanced.sum(dim=0, keepdim=True)
                balanced = balanced / balanced.sum(dim=1, keepdim=True)
            references = references[:, visible]

        random = self.loca(random_query_pixel_values, kept)
        num_focal = focal_query_pixel_values.shape[1]
        focal = self.loca(focal_query_pixel_values.flatten(0, 1))  # (B * Q, n, D)
        tiled = references.repeat_interleave(num_focal, dim=0)  # each focal query has its own copy of the reference
        scores, logits, targets, rows = [], [], [], []
        for queries, keys, positions in (
            (random, references, random_query_positions[:, kept]),
            (focal, tiled, focal_query_positions.flatten(0, 1)),
        ):
            place = self.position_predictor(self.final_norm(self.cross_attention(queries, keys)))
            scores.append(place.flatten(0, 1))
            logits.append(self.cluster_head(queries) / config.student_temperature)
            targets.append(positions.flatten())
            image = torch.arange(len(queries), device=device) // (len(queries) // len(references))
            rows.append((image[:, None] * num_references + positions.clamp(min=0)).flatten())
        score, logit, target, row = (torch.cat(parts) for parts in (scores, logits, targets, rows))
        valid = (target >= 0).float()
        count = valid.sum() + 1e-8
        inside = F.one_hot(target.clamp(min=0), num_references).float()
        location = (-(inside * score.log_softmax(dim=-1)).sum(dim=-1) * valid).sum() / count
        cluster = (-(balanced[row] * logit.log_softmax(dim=-1)).sum(dim=-1) * valid).sum() / count
        mean = logit.softmax(dim=-1).mean(dim=0)
        mean_entropy = (mean * mean.log()).sum()
        return {
            "location_loss": location,
            "cluster_loss": cluster,
            "mean_entropy_loss": mean_entropy,
            "loss": location + cluster + mean_entropy,
        }
