"""A ViT of any family at real size: made by its own library, taken over, trained for a step, written back and compared.

python -m benchmarks.adoption

Time is that of this process on the CPU, memory the most that it has taken up to the end of each row.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from hf_geossl import GTSATrainer, GTSATrainingArguments, GTSAViews, load_for_pretraining
from hf_geossl.conversion import save_family

Row = tuple[str, float, int, float | None]  # what, seconds, MB, largest difference


def measure(hidden_size: int, layers: int, sizes: list[tuple[int, int]], folder: Path) -> list[Row]:
    """Takes a DINOv2 with registers there and back.

    Args:
        hidden_size, layers (`int`): Of the ViT; heads are 64 wide, patches 14 pixels.
        sizes (`list[tuple[int, int]]`): Of the images that features are compared on, in pixels.
        folder (`Path`): For the models.

    Returns:
        `list[Row]`: What was done, its seconds, the process's peak in MB, and the largest difference of features, relative
        to the largest feature, where they are compared.
    """
    rows: list[Row] = []

    def timed(what: str, do: Callable[[], Any], compared: bool = False) -> Any:
        began = time.process_time()
        result = do()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        rows.append((what, time.process_time() - began, memory, result if compared else None))
        return result

    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(1, 3, *size, generator=generator) for size in sizes]

    @torch.no_grad()
    def difference(first: Any, second: Any) -> float:
        """The largest one of features, at all sizes."""
        return max(
            ((found := first(pixels).last_hidden_state) - second(pixels).last_hidden_state).abs().max().item()
            / found.abs().max().item()
            for pixels in images
        )

    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        image_size=224,
        patch_size=14,
    )
    source: Any = transformers.Dinov2WithRegistersModel(config).eval()
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            scale, offset = (0.1, 1.0) if "norm" in name or "lambda" in name else (0.05, 0.0)
            parameter.normal_(std=scale, generator=generator).add_(
                offset if name.endswith(("weight", "lambda1")) else 0.0
            )
    timed("written by transformers", lambda: source.save_pretrained(folder / "source"))
    model = timed("taken over: student, teacher and new heads", lambda: load_for_pretraining("gtsa", folder / "source"))
    timed(f"features at {sizes}", lambda: difference(model.eval().gtsa, source), compared=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    args = GTSATrainingArguments(
        str(folder / "run"), max_steps=1, per_device_train_batch_size=2, base_learning_rate=1e-4, warmup_steps=0, use_cpu=True,
        disable_tqdm=True, picture=False, save_strategy="no", report_to="none",
    )  # fmt: skip
    views = GTSAViews(global_size=224, local_size=98, num_local=2)
    trainer = GTSATrainer(model, args, [{"image": image} for image in pixels], views=views)
    timed("a step of two images, 2 x 224 and 2 x 98 pixels, float32", trainer.train)
    trained = model.eval().gtsa
    timed("written back as dinov2", lambda: save_family(trained, "dinov2", folder / "back"))
    back = timed("opened by transformers", lambda: transformers.AutoModel.from_pretrained(folder / "back").eval())
    timed("features of what was trained", lambda: difference(trained, back), compared=True)
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.hidden_size, options.layers, [(224, 224), (280, 280), (196, 322)], Path(folder))
    print("| | CPU seconds | peak MB | largest difference |\n|---|---|---|---|")
    for what, seconds, memory, largest in rows:
        print(f"| {what} | {seconds:.1f} | {memory:,} | {'' if largest is None else f'{largest:.1e}'} |")


if __name__ == "__main__":
    main()
