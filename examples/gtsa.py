"""GTSA (arXiv 2304.08014) in one file, top to bottom: views, student and teacher, three losses, moving average, probe.

    python examples/gtsa.py [--images path/to/images] [--steps 1000]

What `geossl pretrain` adds: checkpoints and exact resume, several processes, mixed precision, instruments, cards.
"""

import argparse
import copy

import torch
from torch import nn
from torchvision.transforms.functional import normalize, to_tensor

from hf_geossl import GTSAConfig, GTSAModel, GTSAViews, load_scenes, load_stream
from hf_geossl.data.batches import StreamBatches
from hf_geossl.modeling.geometry import overlap_boxes, roi_align_weights, turn_cells
from hf_geossl.modeling.image_format import IMAGENET_MEAN, IMAGENET_STD
from hf_geossl.modeling.objectives import overlap_cosine_loss, patch_correspondence_loss, rotation_loss
from hf_geossl.modeling.pretraining_gtsa import GTSAPredictor, GTSAProjector, GTSARotationHead
from hf_geossl.training.monitors.classifiers import Ridge, accuracy
from hf_geossl.training.schedules import cosine, warmup_cosine

TRUNK = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 48, "patch_size": 8}
CONFIG = GTSAConfig(
    **TRUNK,
    projector_hidden_size=96,
    projection_size=128,
    predictor_hidden_size=128,
    rotation_hidden_sizes=(128, 128, 64),
    roi_output_sizes=(4, 2),  # cells along a side of an overlap: for a global view, for a local one
    num_matches=(18, 4),  # corresponding patches, likewise
    drop_path_rate=0.0,
)


def make_student(config: GTSAConfig) -> nn.ModuleDict:
    """A trunk, and the heads of the three losses."""
    parts = {"trunk": GTSAModel, "projector": GTSAProjector, "predictor": GTSAPredictor, "rotation": GTSARotationHead}
    return nn.ModuleDict({name: part(config) for name, part in parts.items()})


def encode(network: nn.ModuleDict, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens `(B, V, N, C)` that are compared, and the trunk's mean patch tokens, of views `(B, V, 3, S, S)`."""
    outputs = network["trunk"](views.flatten(0, 1))
    maps = network["projector"](network["trunk"].patch_tokens(outputs))
    maps = network["predictor"](maps) if "predictor" in network else maps  # which the student alone has
    return maps.flatten(2).transpose(1, 2).unflatten(0, views.shape[:2]), outputs.pooler_output


def losses(student: nn.ModuleDict, teacher: nn.ModuleDict, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The three losses of a batch of views; `batch` is what `GTSAViews.augment` gives."""
    turns, groups = batch["quarter_turns"], [batch["global_pixel_values"], batch["local_pixel_values"]]
    sizes = [group.shape[-1] for group in groups for _ in range(group.shape[1])]
    num_global, num_views = groups[0].shape[1], len(sizes)

    # 1. The teacher sees the global views, the student all of them.
    targets, _ = encode(teacher, groups[0])  # (B, G, N, C), without gradient
    encoded = [encode(student, group) for group in groups]

    # 2. Where does each view overlap each global one, in the pixels of either, turned as they are?
    teacher_boxes, student_boxes = overlap_boxes(
        batch["crop_boxes"], turns, sizes, num_global
    )  # (B, G, V, 4), (B, V, G, 4)
    difference = turns[:, None, :] - turns[:, :num_global, None]  # (B, G, V) quarter turns from teacher to student

    # 3. Pool the overlap from both maps, turn the teacher's cells, compare; and match patches over whole maps.
    crop, correspondence, first = [], [], 0
    for (tokens, _), cells, matches in zip(encoded, CONFIG.roi_output_sizes, CONFIG.num_matches, strict=True):
        views, side = slice(first, first + tokens.shape[1]), round(tokens.shape[2] ** 0.5)
        weights = roi_align_weights(student_boxes[:, views] / CONFIG.patch_size, cells, side, side)  # (B, V, G, k*k, N)
        mine = weights @ tokens[:, :, None]  # (B, V, G, k*k, C)
        side = sizes[0] // CONFIG.patch_size  # of the teacher's map
        weights = roi_align_weights(teacher_boxes[:, :, views] / CONFIG.patch_size, cells, side, side)
        theirs = turn_cells(weights, difference[:, :, views]) @ targets[:, :, None]  # (B, G, V, k*k, C)
        crop.append(overlap_cosine_loss(mine, theirs.transpose(1, 2)))  # (V, G)
        correspondence.append(patch_correspondence_loss(tokens, targets, matches))
        first = views.stop
    pairs = 1 - torch.eye(num_views, num_global)  # a view is no pair with itself
    of_pairs = {"crop": crop, "correspondence": correspondence}
    parts = {name: (torch.cat(values) * pairs).sum() / pairs.sum() for name, values in of_pairs.items()}

    # 4. Which quarter turn was each view given?
    logits = torch.cat([student["rotation"](pooled).unflatten(0, (len(turns), -1)) for _, pooled in encoded], dim=1)
    parts["rotation"] = rotation_loss(logits, turns)
    return {"loss": parts["crop"] + 0.5 * parts["correspondence"] + 0.5 * parts["rotation"], **parts}


@torch.no_grad()
def probe(trunk: GTSAModel, count: int) -> float:
    """Share of unseen scenes whose quarter turn a linear probe of the mean patch token tells; 0.25 is guessing."""
    turns = torch.arange(count) % 4
    images = [to_tensor(scene["image"]) for scene in load_scenes("validation", CONFIG.image_size, count)]
    turned = torch.stack([torch.rot90(image, index % 4, (1, 2)) for index, image in enumerate(images)])
    features = trunk.eval()(normalize(turned, IMAGENET_MEAN, IMAGENET_STD)).pooler_output
    return accuracy(Ridge(features, turns, 4).left_out, turns)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in {"images": "scenes", "steps": 300, "batch": 64, "probe_images": 256}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    torch.manual_seed(0)
    student = make_student(CONFIG)
    teacher = copy.deepcopy(nn.ModuleDict({name: student[name] for name in ("trunk", "projector")})).requires_grad_(
        False
    )
    views = GTSAViews(global_size=48, local_size=24, num_local=2, blur_probability=0.0)
    batches = StreamBatches(load_stream(options.images), views, options.batch)
    optimizer = torch.optim.AdamW(student.parameters(), weight_decay=0.04)
    print(f"quarter turns told before: {probe(teacher['trunk'], options.probe_images):.3f}")
    for step, batch in zip(range(options.steps), batches.loader(), strict=False):  # batches have no end
        batches.advance(batch)
        parts = losses(student.train(), teacher, views.augment(batch))
        optimizer.param_groups[0]["lr"] = warmup_cosine(step, options.steps, options.steps // 10, 2e-3, 1e-6)
        parts["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # the teacher follows: t <- m t + (1 - m) s
            for name, weight in teacher.named_parameters():
                weight.lerp_(student.get_parameter(name), 1 - cosine(step, options.steps, 0.98, 1.0))
        if step % 10 == 0 or step == options.steps - 1:
            print(f"step {step}: " + ", ".join(f"{name} {value.item():.3f}" for name, value in parts.items()))
    print(f"quarter turns told after: {probe(teacher['trunk'], options.probe_images):.3f}")


if __name__ == "__main__":
    main()
