"""EquiCoherent (arXiv 2503.18753) in one file, top to bottom: views, the path between, student, two losses, probe.

    python examples/equicoherent.py [--images path/to/images] [--steps 1000]

Its host here is SimCLR (arXiv 2002.05709), which has no teacher; examples/gtsa.py and examples/loca.py have one.
What `geossl pretrain` adds: other hosts, checkpoints and exact resume, several processes, mixed precision, cards.
"""

import argparse

import torch
from torch import nn

from hf_geossl import EquiCoherentConfig, EquiCoherentModel, EquiCoherentViews, load_scenes, load_stream
from hf_geossl.data.batches import StreamBatches
from hf_geossl.modeling.modeling_equicoherent import SplitHead
from hf_geossl.modeling.objectives import nt_xent_loss, reconstruction_loss
from hf_geossl.modeling.teacher_student import Projector, ReconstructionDecoder, mean_image_loss
from hf_geossl.training.schedules import warmup_cosine

CONFIG = EquiCoherentConfig(
    host="simclr",
    hidden_size=96,
    num_hidden_layers=3,
    num_attention_heads=3,
    image_size=48,
    patch_size=8,
    drop_path_rate=0.0,
    transformation="se2",  # turned by up to 45 degrees and shifted
    num_intermediate=2,  # images between u and its transformed v2 that are reconstructed
    patch_features=256,
    equivariant_features=64,
    decoder_hidden_size=32,
    projector_sizes=(256, 256, 128),
    pool="class",
    contrast_temperature=0.2,
)


def make_student(config: EquiCoherentConfig) -> nn.ModuleDict:
    """A trunk; the layer whose outputs are divided; the host's projector; a decoder for each image between."""
    to_host = config.patch_features - config.equivariant_features
    decoders = [
        ReconstructionDecoder(2 * config.equivariant_features, config.decoder_hidden_size, config.num_channels)
        for _ in range(config.num_intermediate)
    ]
    return nn.ModuleDict(
        {
            "trunk": EquiCoherentModel(config),
            "split": SplitHead(config.hidden_size, config.patch_features, config.equivariant_features),
            "projector": Projector(to_host, config.projector_sizes),
            "decoders": nn.ModuleList(decoders),
        }
    )


def reconstruct(student: nn.ModuleDict, patches: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The images between, `(B, K, 3, H, W)`, from the patch tokens of both views `(B, 2, N, D)`."""
    z_equi = student["split"](patches, equivariant=True)  # (B, 2, N, d_equi)
    pairs = torch.cat(z_equi.unbind(1), dim=-1)  # (B, N, 2 d_equi): the same place of both views side by side
    grid = (size[0] // CONFIG.patch_size, size[1] // CONFIG.patch_size)
    return torch.stack([decoder(pairs, grid, size) for decoder in student["decoders"]], dim=1)


def losses(student: nn.ModuleDict, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The two losses of a batch of views; `batch` is what `EquiCoherentViews.augment` gives."""
    # 1. Two views: v1, and v2 = g(u), the end of a transformation of u. The trunk encodes both.
    views = batch["global_pixel_values"]  # (B, 2, 3, H, W)
    outputs = student["trunk"](views.flatten(0, 1))
    patches = student["trunk"].patch_tokens(outputs).unflatten(0, views.shape[:2])  # (B, 2, N, D)

    # 2. The host compares images by the invariant part of one vector each.
    vectors = outputs.pooler_output.unflatten(0, views.shape[:2])  # (B, 2, D), class tokens
    z_inv = [student["projector"](student["split"](vector)) for vector in vectors.unbind(1)]  # batch norm of each view
    host = nt_xent_loss(*z_inv, CONFIG.contrast_temperature)

    # 3. The equivariant part of the patches has to give the images on the way from u to v2.
    between = batch["intermediate_pixel_values"]  # (B, K, 3, H, W)
    reconstruction = reconstruction_loss(reconstruct(student, patches, views.shape[-2:]), between)
    loss = host + CONFIG.reconstruction_weight * reconstruction
    return {"loss": loss, "host": host, "reconstruction": reconstruction}


@torch.no_grad()
def probe(student: nn.ModuleDict, views: EquiCoherentViews, count: int) -> tuple[float, float]:
    """Error of the reconstruction of unseen scenes, and that of their mean image."""
    scenes = load_scenes("validation", 64, count)
    batch = views.collate([views(scene["image"], seed=seed) for seed, scene in enumerate(scenes)])
    batch = views.augment(batch, torch.Generator().manual_seed(0))
    pairs = batch["global_pixel_values"]
    trunk = student.eval()["trunk"]
    patches = trunk.patch_tokens(trunk(pairs.flatten(0, 1))).unflatten(0, pairs.shape[:2])
    between = batch["intermediate_pixel_values"]
    error = reconstruction_loss(reconstruct(student, patches, pairs.shape[-2:]), between)
    return error.item(), mean_image_loss(between).item()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in {"images": "scenes", "steps": 400, "batch": 64, "probe_images": 256}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    torch.manual_seed(0)
    student = make_student(CONFIG)
    views = EquiCoherentViews(host="simclr", transformation="se2", num_intermediate=2, global_size=48, patch_size=8)
    batches = StreamBatches(load_stream(options.images), views, options.batch)
    optimizer = torch.optim.AdamW(student.parameters(), betas=(0.9, 0.95), weight_decay=0.04)
    report = "error of the images between {}: {:.3f} (of the mean image {:.3f})"
    print(report.format("before", *probe(student, views, options.probe_images)))
    for step, batch in zip(range(options.steps), batches.loader(), strict=False):  # batches have no end
        batches.advance(batch)
        parts = losses(student.train(), views.augment(batch))
        optimizer.param_groups[0]["lr"] = warmup_cosine(step, options.steps, options.steps // 10, 2e-3, 1e-6)
        parts["loss"].backward()
        nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == options.steps - 1:
            print(f"step {step}: " + ", ".join(f"{name} {value.item():.3f}" for name, value in parts.items()))
    print(report.format("after", *probe(student, views, options.probe_images)))


if __name__ == "__main__":
    main()
