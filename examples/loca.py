"""LOCA (arXiv 2212.02400) in one file, top to bottom: views, student and teacher, three losses, moving average, probe.

    python examples/loca.py [--images path/to/images] [--steps 1000]

What `geossl pretrain` adds: checkpoints and exact resume, several processes, mixed precision, instruments, cards.
"""

import argparse
import copy

import torch
from torch import nn
from torch.nn import functional as F

from hf_geossl import LOCAConfig, LOCAModel, LOCAViews, load_scenes, load_stream
from hf_geossl.data.batches import StreamBatches
from hf_geossl.modeling.modeling_loca import make_heads
from hf_geossl.modeling.objectives import location_loss, patch_cluster_losses, sinkhorn
from hf_geossl.training.schedules import cosine, warmup_cosine

CONFIG = LOCAConfig(
    hidden_size=96,
    num_hidden_layers=3,
    num_attention_heads=3,
    image_size=48,
    patch_size=8,
    head_hidden_size=256,
    head_bottleneck_size=64,
    num_prototypes=64,
    num_kept_query_tokens=18,  # of the large query's patches, drawn anew each step
    visible_reference_ratio=1.0,  # share of the reference's patches that queries may look at
)


def make_student(config: LOCAConfig) -> nn.ModuleDict:
    """A trunk; the head of clusters; cross-attention to the reference, a norm, and a score for each position."""
    return nn.ModuleDict({"trunk": LOCAModel(config), **make_heads(config)})


def patches(network: nn.ModuleDict, images: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
    """Patch tokens `(B, N, D)` of images; of the kept patches alone where they are given."""
    trunk = network["trunk"]
    return trunk.patch_tokens(trunk(images, kept))


def positions(network: nn.ModuleDict, queries: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Scores `(B, T, N)` of the reference's positions for query tokens `(B, T, D)` that look at its tokens."""
    attended = network["cross_attention"](queries, references)
    return network["position_predictor"](network["final_norm"](attended))


def losses(student: nn.ModuleDict, teacher: nn.ModuleDict, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The three losses of a batch of views; `batch` is what `LOCAViews.augment` gives."""
    # 1. The teacher sees the whole reference: what queries look at, and the clusters of its patches.
    with torch.no_grad():
        reference = patches(teacher, batch["reference_pixel_values"])  # (B, N, D)
        visible = reference[:, : int(CONFIG.visible_reference_ratio * reference.shape[1])]
        probabilities = F.softmax(teacher["cluster_head"](reference) / CONFIG.teacher_temperature, dim=-1)
        clusters = sinkhorn(probabilities.flatten(0, 1), CONFIG.sinkhorn_iterations)  # (B * N, K), evenly used

    # 2. The student sees a few patches of a large query, and small focal queries as a whole.
    kept = torch.randperm(batch["random_query_positions"].shape[1])[: CONFIG.num_kept_query_tokens]
    tokens = [patches(student, batch["random_query_pixel_values"], kept)]
    targets = [batch["random_query_positions"][:, kept]]  # where each patch lies in the reference; -1 is outside
    focal = patches(student, batch["focal_query_pixel_values"].flatten(0, 1))
    tokens.append(focal.unflatten(0, batch["focal_query_positions"].shape[:2]).flatten(1, 2))
    targets.append(batch["focal_query_positions"].flatten(1))
    query, target = torch.cat(tokens, dim=1), torch.cat(targets, dim=1)  # (B, T, D), (B, T)

    # 3. Where does each patch lie in the reference?
    location, found = location_loss(positions(student, query, visible), target)

    # 4. Which cluster does the teacher see at that place? And all clusters are to be used.
    rows = torch.arange(len(target))[:, None] * reference.shape[1] + target.clamp_min(0)
    cluster, mean_entropy = patch_cluster_losses(
        student["cluster_head"](query).flatten(0, 1),
        clusters,
        (target >= 0).flatten(),
        CONFIG.student_temperature,
        rows.flatten(),
    )
    loss = location + cluster + mean_entropy
    return {"loss": loss, "location": location, "cluster": cluster, "mean_entropy": mean_entropy, "found": found}


@torch.no_grad()
def probe(student: nn.ModuleDict, teacher: nn.ModuleDict, views: LOCAViews, count: int) -> float:
    """Share of patches of queries of unseen scenes that are found at their place; 1 / 36 is guessing."""
    scenes = load_scenes("validation", 64, count)
    batch = views.normalize(views.collate([views(scene["image"], seed=seed) for seed, scene in enumerate(scenes)]))
    reference = patches(teacher.eval(), batch["reference_pixel_values"])
    scores = positions(student.eval(), patches(student, batch["random_query_pixel_values"]), reference)
    return location_loss(scores, batch["random_query_positions"])[1].item()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in {"images": "scenes", "steps": 500, "batch": 32, "probe_images": 256}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    torch.manual_seed(0)
    student = make_student(CONFIG)
    teacher = copy.deepcopy(student).requires_grad_(False)
    views = LOCAViews(reference_size=48, focal_size=24, num_focal=2, patch_size=8, solarize_probability=0.0)
    batches = StreamBatches(load_stream(options.images), views, options.batch)
    optimizer = torch.optim.AdamW(student.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    print(f"found at their place before: {probe(student, teacher, views, options.probe_images):.3f}")
    for step, batch in zip(range(options.steps), batches.loader(), strict=False):  # batches have no end
        batches.advance(batch)
        parts = losses(student.train(), teacher.train(), views.augment(batch))
        optimizer.param_groups[0]["lr"] = warmup_cosine(step, options.steps, options.steps // 20, 3e-3, 1e-5)
        parts["loss"].backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # the teacher follows: t <- m t + (1 - m) s
            for name, weight in teacher.named_parameters():
                weight.lerp_(student.get_parameter(name), 1 - cosine(step, options.steps, 0.95, 1.0))
        if step % 50 == 0 or step == options.steps - 1:
            print(f"step {step}: " + ", ".join(f"{name} {value.item():.3f}" for name, value in parts.items()))
    print(f"found at their place after: {probe(student, teacher, views, options.probe_images):.3f}")


if __name__ == "__main__":
    main()
