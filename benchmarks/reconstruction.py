"""
What the reconstruction task costs on top of its host's training step: `python -m benchmarks.reconstruction --json`.

Both models are EquiCoherent with the same host, split and views ("host + g" at weight 0, and with decoders). Steps (forward,
backward, AdamW, teacher and centers) are interleaved in one process; medians.
"""

import argparse
import statistics

import torch

from benchmarks.interleave import interleave, median_ratio, show
from hf_geossl import EquiCoherentConfig, EquiCoherentForPreTraining
from hf_geossl.views.equicoherent import HOSTS
from hf_geossl.views.masks import draw_block_masks


def make_step(weight: float, args: argparse.Namespace, batch: dict[str, torch.Tensor | None]):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    config = EquiCoherentConfig(host=args.host, reconstruction_weight=weight, num_intermediate=2)
    model = EquiCoherentForPreTraining(config).to(args.device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, foreach=True)
    inputs = dict(batch) if weight else {**batch, "intermediate_pixel_values": None}

    def step() -> None:
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bf16):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.on_optimizer_step(0.996)
        if args.device != "cpu":
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", choices=list(HOSTS), default="ibot")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--json", action="store_true", help="Print one JSON line.")
    args = parser.parse_args()
    num_local, size = HOSTS[args.host].num_local, args.batch_size
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(size, *shape, generator=generator).to(args.device)

    masks = None
    if args.host in ("ibot", "dinov2"):
        masks = draw_block_masks(args.host, 2 * size, 14, 14, generator).view(size, 2, 196).to(args.device)
    batch = {
        "global_pixel_values": noise(2, 3, 224, 224),
        "local_pixel_values": noise(num_local, 3, 96, 96) if num_local else None,
        "intermediate_pixel_values": noise(2, 3, 224, 224),
        "bool_masked_pos": masks,
    }
    steps = {"baseline": make_step(0.0, args, batch), "ours": make_step(1.0, args, batch)}
    times = interleave(steps, args.repeats)
    ours, baseline = (statistics.median(times[name]) for name in ("ours", "baseline"))
    result = {
        "what": f"step of {args.host} with the task / without, ViT-S/16, batch {size}",
        "ours": round(ours, 4),
        "baseline": round(baseline, 4),
        "ratio": round(median_ratio(times["ours"], times["baseline"]), 4),
        "target": "<= 1.15",
    }
    show(result, args.json)


if __name__ == "__main__":
    main()
