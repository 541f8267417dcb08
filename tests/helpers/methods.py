"""The methods with a small configuration and batch of each, and the trunk written out slowly, for tests that all share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import hf_geossl

KINDS = ["Model", "Backbone", "ForImageClassification", "ForSemanticSegmentation", "ForPreTraining"]


def randomise(model: nn.Module, std: float = 0.2, seed: int = 0) -> Any:
    """Weights that no initialisation would give, so that every part matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.normal_(std=std, generator=generator)
    return model.eval()


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Method:
    """
    Args:
        name (`str`): Prefix of its classes.
        batch: Makes a batch for pretraining at 32 pixels.
        heads: Small sizes of its heads.
        code: Modules that its pretraining class imports and those of other methods do not.
        pools_class_token: Whether its class token stands for an image, not the mean of the patch tokens.
        centers: Buffers that its pretraining class keeps in float32.
    """

    name: str
    batch: Callable[..., dict[str, torch.Tensor]]
    heads: dict[str, Any] = field(default_factory=dict)
    code: frozenset[str] = frozenset()
    pools_class_token: bool = False
    centers: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        return self.name.lower()

    def kind(self, name: str) -> Any:
        """The class of one of KINDS."""
        return getattr(hf_geossl, self.name + name)

    def pooled(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        """What stands for an image, from all tokens of a trunk."""
        return tokens[:, 0] if self.pools_class_token else tokens[:, int(model.config.use_class_token) :].mean(1)

    def config(self, **fields: Any) -> Any:
        """Small: 4 layers of width 32 on 4 x 4 patches of 8 pixels."""
        small = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
        small |= {"drop_path_rate": 0.0}
        return getattr(hf_geossl, self.name + "Config")(**{**small, **self.heads, **fields})

    def model(self, name: str, std: float = 0.2, **fields: Any) -> Any:
        """A model of one of KINDS with random weights, in eval mode."""
        return randomise(self.kind(name)(self.config(**fields)), std)

    def trunk(self, model: Any) -> Any:
        """The trunk inside a model with a head."""
        return getattr(model, self.prefix)


def gtsa_batch(num_global: int = 2, num_local: int = 2, batch_size: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    views = num_global + num_local
    low = torch.rand(batch_size, views, 2, generator=generator) * 40
    high = 60 + torch.rand(batch_size, views, 2, generator=generator) * 40
    return {
        "global_pixel_values": torch.randn(batch_size, num_global, 3, 32, 32, generator=generator),
        "local_pixel_values": torch.randn(batch_size, num_local, 3, 16, 16, generator=generator),
        "crop_boxes": torch.cat([low, high], dim=-1).round(),
        "quarter_turns": torch.randint(0, 4, (batch_size, views), generator=generator),
    }


def loca_batch(
    batch_size: int = 3,
    num_focal: int = 2,
    reference: tuple[int, int] = (32, 32),
    random: tuple[int, int] = (32, 32),
    focal: tuple[int, int] = (16, 16),
    channels: int = 3,
) -> dict[str, torch.Tensor]:
    """Without the tokens that the model draws; patches of 8 pixels, about a quarter of the positions outside."""
    generator = torch.Generator().manual_seed(7)
    cells = reference[0] * reference[1] // 64

    def positions(*shape: int) -> torch.Tensor:
        inside = torch.randint(0, cells, shape, generator=generator)
        return inside.where(torch.rand(shape, generator=generator) > 0.25, torch.tensor(-1))

    return {
        "reference_pixel_values": torch.randn(batch_size, channels, *reference, generator=generator),
        "random_query_pixel_values": torch.randn(batch_size, channels, *random, generator=generator),
        "focal_query_pixel_values": torch.randn(batch_size, num_focal, channels, *focal, generator=generator),
        "random_query_positions": positions(batch_size, random[0] * random[1] // 64),
        "focal_query_positions": positions(batch_size, num_focal, focal[0] * focal[1] // 64),
    }


def equicoherent_batch(
    batch_size: int = 3,
    num_local: int = 2,
    size: int = 32,
    local: int = 16,
    num_intermediate: int = 2,
    channels: int = 3,
) -> dict[str, torch.Tensor]:
    """Patches of 8 pixels; about a third of them masked."""
    generator = torch.Generator().manual_seed(11)
    shape = (batch_size, 2, channels, size, size)
    return {
        "global_pixel_values": torch.randn(shape, generator=generator),
        "local_pixel_values": torch.randn(batch_size, num_local, channels, local, local, generator=generator),
        "intermediate_pixel_values": torch.randn(batch_size, num_intermediate, *shape[2:], generator=generator),
        "bool_masked_pos": torch.rand(batch_size, 2, size * size // 64, generator=generator) < 0.35,
    }


GTSA_HEADS = {"projector_hidden_size": 24, "projection_size": 20, "predictor_hidden_size": 28}
GTSA_HEADS |= {"rotation_hidden_sizes": (16, 12), "roi_output_sizes": (4, 2), "num_matches": (6, 3)}
LOCA_HEADS = {"head_hidden_size": 24, "head_bottleneck_size": 12, "num_prototypes": 20, "num_kept_query_tokens": 7}

EQUICOHERENT_HEADS = {"patch_features": 24, "equivariant_features": 8, "num_prototypes": 20, "head_hidden_size": 28}
EQUICOHERENT_HEADS |= {"head_bottleneck_size": 12, "decoder_hidden_size": 16, "projector_sizes": (20, 18)}

METHODS = {
    "gtsa": Method("GTSA", gtsa_batch, GTSA_HEADS, frozenset({"geometry"})),
    "loca": Method("LOCA", loca_batch, LOCA_HEADS, frozenset()),
    "equicoherent": Method(
        "EquiCoherent",
        equicoherent_batch,
        EQUICOHERENT_HEADS,
        frozenset(),
        pools_class_token=True,
        centers=("class_center", "patch_center"),
    ),
}


def triangle_weights(old: int, new: int) -> torch.Tensor:
    """Bilinear resampling of a line with antialiasing, `jax.image.resize`'s: weights `(new, old)`, one at a time."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    width = max(old / new, 1.0)
    for i in range(new):
        for j in range(old):
            weights[i, j] = max(0.0, 1 - abs((i + 0.5) * old / new - 0.5 - j) / width)
    return weights / weights.sum(1, keepdim=True)


def literal_positions(config: Any, table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A table `(grid_rows, grid_columns, D)` for another grid, `(rows, columns, D)`."""
    if table.shape[:2] == (rows, columns):
        return table
    if config.position_interpolation == "bilinear":
        across = [
            triangle_weights(old, new).to(table) for old, new in zip(table.shape[:2], (rows, columns), strict=True)
        ]
        return torch.einsum("ik,jl,kld->ijd", *across, table)
    offset = getattr(config, "position_interpolation_offset", 0.0)
    factor = ((rows + offset) / table.shape[0], (columns + offset) / table.shape[1])
    return F.interpolate(table.permute(2, 0, 1)[None], scale_factor=factor, mode="bicubic")[0].permute(1, 2, 0)


def literal_mlp(
    config: Any, x: torch.Tensor, linear: Callable[..., torch.Tensor], first: str, second: str
) -> torch.Tensor:
    hidden = linear(x, first)
    if config.hidden_act == "gelu":
        gate = torch.erf(hidden / 2**0.5)
    else:
        gate = torch.tanh((2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3))
    return linear(hidden * 0.5 * (1 + gate), second)


def literal_trunk(
    config: Any,
    state: dict[str, torch.Tensor],
    pixel_values: torch.Tensor,
    kept_tokens: list[int] | None = None,
    use_positions: bool = True,
    bool_masked_pos: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    The trunk in float64 from the weights alone, image by image and head by head; `(batch, tokens, hidden_size)`:
    class token, registers, patches.
    """
    width, heads, patch = config.hidden_size, config.num_attention_heads, config.patch_size
    state = {name: value.double() for name, value in state.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.pow(2).mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        return centred / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def scale(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * state[f"{name}.weight"] if config.layerscale_value is not None else x

    kernel = state["embeddings.patch_embeddings.weight"].flatten(1)
    rows, columns = pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch
    grid_rows, grid_columns = (side // patch for side in config.image_height_width)
    positions = state["embeddings.position_embeddings"][0]
    prefix = len(positions) - grid_rows * grid_columns
    table = positions[prefix:].reshape(grid_rows, grid_columns, width)
    table = literal_positions(config, table, rows, columns).flatten(0, 1)
    found = []
    for place, image in enumerate(pixel_values.double()):
        tokens = []
        for cell in range(rows * columns) if kept_tokens is None else kept_tokens:
            y, x = cell // columns * patch, cell % columns * patch
            token = kernel @ image[:, y : y + patch, x : x + patch].flatten()
            token = token + state["embeddings.patch_embeddings.bias"]
            if bool_masked_pos is not None and bool_masked_pos[place, cell]:
                token = state["embeddings.mask_token"][0]
            tokens.append(token + table[cell] if use_positions else token)
        tokens = [*state.get("embeddings.register_tokens", torch.zeros(1, 0, width).double())[0], *tokens]
        if prefix:
            first = state["embeddings.cls_token"][0, 0]
            tokens.insert(0, first + positions[0] if use_positions else first)
        x = torch.stack(tokens)
        for index in range(config.num_hidden_layers):
            name = f"encoder.layer.{index}"
            q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attention.qkv").split(width, dim=-1)
            mixed = []
            for one_q, one_k, one_v in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True):
                mixed.append((one_q @ one_k.T / (width // heads) ** 0.5).softmax(-1) @ one_v)
            x = x + scale(linear(torch.cat(mixed, dim=-1), f"{name}.attention.projection"), f"{name}.layer_scale1")
            hidden = literal_mlp(config, norm(x, f"{name}.norm2"), linear, f"{name}.mlp.fc1", f"{name}.mlp.fc2")
            x = x + scale(hidden, f"{name}.layer_scale2")
        found.append(norm(x, "layernorm"))
    return torch.stack(found)
