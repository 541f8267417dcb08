"""
GTSA's step as a plain eager program: one pass a view size, loops over pairs and samples, one `roi_align` a map and pair.

Written from the formulas (arXiv 2304.08014); parameters have the names of `GTSAForPreTraining`.
"""

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from benchmarks.baseline_vit import PlainViT, move_teacher


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a map, by transposing there and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, channels, side, side)` to the same shape."""
        return self.norm(maps.transpose(1, -1)).transpose(1, -1)


class PlainBlock(nn.Module):
    """Convolution, norm, GELU, and a residual where channels allow it."""

    def __init__(self, inputs: int, outputs: int, residual: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.rest = nn.Sequential(ChannelNorm(outputs), nn.GELU())
        self.residual = residual and inputs == outputs

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, inputs, side, side)` to `(batch, outputs, side, side)`."""
        out = self.rest(self.convolution(maps))
        return out + maps if self.residual else out


class PlainProjector(nn.Module):
    """Tokens to maps."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden = config.projector_hidden_size
        self.blocks = nn.ModuleList(
            [PlainBlock(config.hidden_size, hidden, residual=True), PlainBlock(hidden, hidden, residual=True)]
        )
        self.projection = nn.Conv2d(hidden, config.projection_size, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps patch tokens `(batch, side ** 2, hidden_size)` to `(batch, projection_size, side, side)`."""
        side = int(tokens.shape[1] ** 0.5)
        maps = tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
        for block in self.blocks:
            maps = block(maps)
        return self.projection(maps)


class PlainPredictor(nn.Module):
    """The student's own head."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.block = PlainBlock(config.projection_size, config.predictor_hidden_size, residual=False)
        self.projection = nn.Conv2d(config.predictor_hidden_size, config.projection_size, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, projection_size, side, side)` to the same shape."""
        return self.projection(self.block(maps))


class PlainRotationHead(nn.Module):
    """The mean patch token to four scores."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        widths = [config.hidden_size, *config.rotation_hidden_sizes]
        self.linears = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for width in widths[1:]])
        self.classifier = nn.Linear(widths[-1], 4)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, hidden_size)` to `(batch, 4)`."""
        for index, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            features = norm(linear(features))
            if index < len(self.linears) - 1:
                features = F.gelu(features)
        return self.classifier(features)


def pair_box(first: torch.Tensor, second: torch.Tensor, turns: int, size: int, frame: torch.Tensor) -> torch.Tensor:
    """The overlap of two crops `(4,)` in the pixels of one of them, `frame`, after its quarter turns."""
    low, high = torch.maximum(first[:2], second[:2]), torch.minimum(first[2:], second[2:])
    side = frame[2:] - frame[:2]
    x1, y1 = ((low - frame[:2]) / side * size).unbind()
    x2, y2 = ((high - frame[:2]) / side * size).unbind()
    corners = {
        0: (x1, y1, x2, y2),
        1: (y1, size - x2, y2, size - x1),
        2: (size - x2, size - y2, size - x1, size - y1),
        3: (size - y2, x1, size - y1, x2),
    }
    return torch.stack(corners[turns])


def plain_boxes(
    crop_boxes: torch.Tensor, quarter_turns: torch.Tensor, sizes: list[int], num_global: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The data loader's part: overlaps `(batch, globals, views, 4)` in the global view, `(batch, views, globals, 4)` in the other."""
    num_views = len(sizes)
    in_global = torch.zeros(len(crop_boxes), num_global, num_views, 4)
    in_view = torch.zeros(len(crop_boxes), num_views, num_global, 4)
    for b, (boxes, turns) in enumerate(zip(crop_boxes.float().cpu(), quarter_turns.tolist(), strict=True)):
        for q in range(num_global):
            for v in range(num_views):
                in_global[b, q, v] = pair_box(boxes[q], boxes[v], turns[q], sizes[q], boxes[q])
                in_view[b, v, q] = pair_box(boxes[q], boxes[v], turns[v], sizes[v], boxes[v])
    return in_global.to(crop_boxes.device), in_view.to(crop_boxes.device)


def best_matches(source: torch.Tensor, target: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For one pair of maps `(batch, tokens, channels)`: which source tokens are kept, and what each is matched with."""
    similarity = torch.bmm(F.normalize(source, dim=-1), F.normalize(target, dim=-1).transpose(1, 2))
    best, match = similarity.max(dim=-1)
    kept = best.topk(min(count, best.shape[1]), dim=-1).indices.sort(dim=-1).values
    return kept, match.gather(1, kept)


def matched_cosine(source: torch.Tensor, target: torch.Tensor, kept: torch.Tensor, match: torch.Tensor) -> torch.Tensor:
    """Mean cosine of the matched tokens of one pair of maps."""
    channels = source.shape[-1]
    chosen = source.gather(1, kept[..., None].expand(-1, -1, channels))
    matched = target.gather(1, match[..., None].expand(-1, -1, channels))
    return F.cosine_similarity(chosen, matched, dim=-1).mean()


class PlainGTSA(nn.Module):
    """Student, teacher and losses."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.gtsa = PlainViT(config, config.drop_path_rate)
        self.projector = PlainProjector(config)
        self.predictor = PlainPredictor(config)
        self.rotation_head = PlainRotationHead(config)
        self.teacher = nn.Module()
        self.teacher.gtsa = PlainViT(config, 0.0)
        self.teacher.projector = PlainProjector(config)
        self.teacher.requires_grad_(False)

    @staticmethod
    def prepare(batch: dict[str, Any]) -> dict[str, Any]:
        """What the data loader adds to a batch of views: the overlaps; not a part of the step."""
        batch = dict(batch)
        groups = [batch["global_pixel_values"], batch["local_pixel_values"]]
        sizes = [group.shape[-1] for group in groups if group is not None for _ in range(group.shape[1])]
        boxes = plain_boxes(batch.pop("crop_boxes"), batch["quarter_turns"], sizes, groups[0].shape[1])
        return {**batch, "in_global": boxes[0], "in_view": boxes[1]}

    def on_optimizer_step(self, momentum: float) -> None:
        """Moves the teacher."""
        move_teacher(self.teacher, self, momentum)

    def encode(self, views: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Maps and rotation scores of each of the views `(batch, views, channels, side, side)`."""
        tokens = self.gtsa(views.flatten(0, 1))[:, 1:]
        maps = self.predictor(self.projector(tokens)).unflatten(0, views.shape[:2])
        logits = self.rotation_head(tokens.mean(dim=1)).unflatten(0, views.shape[:2])
        return list(maps.unbind(1)), list(logits.unbind(1))

    def forward(
        self,
        global_pixel_values: torch.Tensor,
        local_pixel_values: torch.Tensor | None,
        quarter_turns: torch.Tensor,
        in_global: torch.Tensor,
        in_view: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The losses by name, of what `prepare` returned."""
        config, num_global = self.config, global_pixel_values.shape[1]
        groups = [global_pixel_values] if local_pixel_values is None else [global_pixel_values, local_pixel_values]
        sizes = [group.shape[-1] for group in groups for _ in range(group.shape[1])]
        maps: list[torch.Tensor] = []
        logits: list[torch.Tensor] = []
        for group in groups:
            group_maps, group_logits = self.encode(group)
            maps, logits = maps + group_maps, logits + group_logits
        with torch.no_grad():
            tokens = self.teacher.gtsa(global_pixel_values.flatten(0, 1))[:, 1:]
            targets = self.teacher.projector(tokens).unflatten(0, global_pixel_values.shape[:2])

        crop, correspondence = [], []
        for q in range(num_global):
            for v in range(len(sizes)):
                if v != q:
                    group = int(v >= num_global)
                    turns = quarter_turns[:, v] - quarter_turns[:, q]
                    boxes = in_global[:, q, v], in_view[:, v, q]
                    crop.append(self.crop_loss(maps[v], targets[:, q], boxes, turns, config.roi_output_sizes[group]))
                    correspondence.append(self.correspondence_loss(maps[v], targets[:, q], config.num_matches[group]))
        losses = {
            "crop_loss": torch.stack(crop).mean(),
            "correspondence_loss": torch.stack(correspondence).mean(),
            "rotation_loss": torch.stack(
                [F.cross_entropy(scores, quarter_turns[:, v].long()) for v, scores in enumerate(logits)]
            ).mean(),
        }
        losses["loss"] = (
            losses["crop_loss"]
            + config.correspondence_weight * losses["correspondence_loss"]
            + config.rotation_weight * losses["rotation_loss"]
        )
        return losses

    def crop_loss(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        boxes: tuple[torch.Tensor, torch.Tensor],
        turns: torch.Tensor,
        cells: int,
    ) -> torch.Tensor:
        """Crop loss of one pair of maps `(batch, channels, side, side)`."""
        pooled = [
            roi_align(
                maps, [box[None] for box in batch / self.config.patch_size], cells, sampling_ratio=-1, aligned=True
            )
            for maps, batch in ((teacher, boxes[0]), (student, boxes[1]))
        ]
        turned = torch.stack(
            [torch.rot90(cell, turn % 4, dims=(-2, -1)) for cell, turn in zip(pooled[0], turns.tolist(), strict=True)]
        )
        return -(F.normalize(pooled[1], dim=1) * F.normalize(turned, dim=1)).sum(dim=1).mean()

    def correspondence_loss(self, student: torch.Tensor, teacher: torch.Tensor, count: int) -> torch.Tensor:
        """Patch-correspondence loss of one pair of maps `(batch, channels, side, side)`."""
        student, teacher = student.flatten(2).transpose(1, 2), teacher.flatten(2).transpose(1, 2)
        with torch.no_grad():
            forth, back = best_matches(student, teacher, count), best_matches(teacher, student, count)
        return -0.5 * (matched_cosine(student, teacher, *forth) + matched_cosine(teacher, student, *back))
