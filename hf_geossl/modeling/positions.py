"""From images to tokens: patches, where they lie (learned tables, resampled to other grids; RoPE), class token and registers."""

import math
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .configuration_vit import GeometricViTConfig

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, (patches, head_dim)


class ViTPatchEmbeddings(nn.Conv2d):
    """Cuts an image into patches and maps each to a token; keeps PyTorch's own initialisation."""

    def __init__(self, config: GeometricViTConfig) -> None:
        size = config.patch_size
        super().__init__(config.num_channels, config.hidden_size, size, stride=size, bias=config.patch_bias)
        self.patch_size = config.patch_size

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Maps `pixel_values (batch, channels, height, width)` to tokens `(batch, rows, columns, hidden_size)`."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.in_channels:
            raise ValueError(
                f"pixel_values must have shape (batch, {self.in_channels}, height, width), "
                f"got {tuple(pixel_values.shape)}"
            )
        height, width = pixel_values.shape[-2:]
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise ValueError(
                f"height and width of pixel_values must be multiples of the patch size {self.patch_size}, "
                f"got {height} x {width}; resize or pad the images"
            )
        return super().forward(pixel_values.to(self.weight.dtype)).permute(0, 2, 3, 1)


def resample_positions(
    positions: torch.Tensor, height: int, width: int, offset: float = 0.0, mode: str = "bicubic"
) -> torch.Tensor:
    """Resamples a table of position embeddings to another grid, in float32; the dtype stays.

    Args:
        positions (`torch.Tensor` of shape `(rows, columns, hidden_size)`): The table.
        height, width (`int`): The new grid, in patches.
        offset (`float`, defaults to 0.0): Added to `height` and `width` where the sampling step is computed, as DINO
            and GTSA do with 0.1; 0 resamples to the exact size.
        mode (`str`, defaults to `"bicubic"`): `"bicubic"` without antialiasing as DINO and GTSA, `"bicubic_antialias"`
            with Pillow's kernel as timm, or `"bilinear"` with antialiasing where the grid shrinks as LOCA
            (`jax.image.resize`).
    """
    grid_height, grid_width, _ = positions.shape
    known = isinstance(height, int) and isinstance(width, int)
    if known and torch.compiler.is_exporting():  # a strict export shows open sizes as whole numbers
        known = statically_known_true(height == grid_height) and statically_known_true(width == grid_width)
    if not known:  # sizes that an export or a trace keeps open
        rows, columns = _resampling_matrices((grid_height, grid_width), (height, width), offset, mode, positions.device)
        return torch.einsum("hr,wc,rcd->hwd", rows, columns, positions.float()).to(positions.dtype)
    if (height, width) == (grid_height, grid_width):
        return positions
    target: dict[str, Any] = {"size": (height, width)}
    if offset:
        target = {"scale_factor": ((height + offset) / grid_height, (width + offset) / grid_width)}
    table = positions.float().permute(2, 0, 1)[None]  # (1, D, grid_height, grid_width)
    method, antialias = mode.removesuffix("_antialias"), mode != "bicubic"
    table = nn.functional.interpolate(table, mode=method, align_corners=False, antialias=antialias, **target)
    return table[0].permute(1, 2, 0).to(positions.dtype)


def _resampling_matrices(
    grid: tuple[int, int], sizes: tuple[int, int], offset: float, mode: str, device: torch.device
) -> list[torch.Tensor]:
    """Makes the matrices `(new, old)` of rows and columns of what `interpolate` does, in tensors alone, for any size."""
    steps = [torch.arange(size, device=device).float() for size in sizes]
    counts = [step[-1] + 1 for step in steps]
    changes = [count != old for old, count in zip(grid, counts, strict=True)]
    if mode == "bicubic":  # a grid that stays is not resampled; with antialiasing, a side that stays
        changes = [changes[0] | changes[1]] * 2
    matrices = []
    for old, step, count, change in zip(grid, steps, counts, changes, strict=True):
        stride = old / (count + offset * change)
        places = torch.arange(-2, old + 2, device=device)  # a cubic kernel reaches two beyond the edge
        away = ((step[:, None] + 0.5) * stride - 0.5 - places).abs()
        if mode == "bicubic":
            weights = _cubic(away, -0.75)  # of places beyond the edge on it
            inside = [weights[:, :3].sum(1, keepdim=True), weights[:, 3:-3], weights[:, -3:].sum(1, keepdim=True)]
            matrices.append(torch.cat(inside, 1) if old > 1 else weights.sum(1, keepdim=True))
            continue
        away = away[:, 2:-2] / stride.clamp(min=1)
        weights = (1 - away).clamp(min=0) if mode == "bilinear" else _cubic(away, -0.5)
        matrices.append(weights / weights.sum(1, keepdim=True))
    return matrices


def _cubic(away: torch.Tensor, a: float) -> torch.Tensor:
    """The cubic convolution kernel of distances."""
    near, far = ((a + 2) * away - (a + 3)) * away**2 + 1, a * (((away - 5) * away + 8) * away - 4)
    return torch.where(away < 1, near, torch.where(away < 2, far, 0.0))


class CellPool(nn.AdaptiveAvgPool2d):
    """Means of as many cells a side; written as products of matrices while it is traced or exported.

    ONNX has no pooling to a given number of cells: its exporters know that of fixed, divisible sizes alone.
    """

    def __init__(self, cells: int) -> None:
        super().__init__(cells)
        self.cells = cells

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Pools maps `(batch, channels, rows, columns)`."""
        if not (torch.jit.is_tracing() or torch.compiler.is_exporting()):
            return super().forward(input)
        rows, columns = (self._means(side, input) for side in input.shape[-2:])
        return rows @ input @ columns.T

    def _means(self, side: int, maps: torch.Tensor) -> torch.Tensor:
        """The matrix `(cells, side)` of means: cell i of n reaches from the floor of i / n to the ceiling of (i + 1) / n."""
        steps = torch.arange(side, device=maps.device)
        cells, count = torch.arange(self.cells, device=maps.device)[:, None], steps[-1] + 1
        places = steps * self.cells
        inside = (places > cells * count - self.cells) & (places < (cells + 1) * count)
        return inside.to(maps.dtype) / inside.sum(1, keepdim=True)


def fuse_maps(neck: Any, tokens: list[torch.Tensor], rows: int, columns: int) -> list[torch.Tensor]:
    """Reassembles and fuses maps as transformers' `DPTNeck` does, with the same bits, from the deepest to the finest.

    Each map is resized to the one it is added to even where that changes nothing: DPT compares their sizes, and an export
    takes the answer of its example for that of all images.
    """
    fused: list[torch.Tensor] = []
    maps = neck.reassemble_stage(tokens, rows, columns)
    parts = [convolve(part) for convolve, part in zip(neck.convs, maps, strict=True)]
    for layer, part in zip(neck.fusion_stage.layers, parts[::-1], strict=True):
        if fused:
            size = fused[-1].shape[-2:]
            part = nn.functional.interpolate(part, size=size, mode="bilinear", align_corners=False)
        fused.append(layer(fused[-1], part) if fused else layer(part))
    return fused


class ViTRotaryPositions(nn.Module):
    """Rotary positions of DINOv3: patch centres from -1 to 1 along each side, so that any grid spans the same angles.

    Source: arXiv 2508.10104, section 3.2, without its random shift, jitter and rescaling in training.
    """

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__()
        self.theta = config.rope_theta
        self.head_dim = config.hidden_size // config.num_attention_heads

    def forward(
        self, rows: int, columns: int, kept_tokens: torch.Tensor | None = None, device: torch.device | None = None
    ) -> Rotation:
        """Gives cosines and sines `(patches, head_dim)`, float32, of a grid's patches in raster order, or of those kept."""
        centres = [(torch.arange(side, device=device) + 0.5) / side * 2 - 1 for side in (rows, columns)]
        exponents = torch.arange(0, 1, 4 / self.head_dim, device=device)  # a quarter of the channels each: y, x, y, x
        places = torch.stack(torch.meshgrid(*centres, indexing="ij"), dim=-1).flatten(0, 1)  # (patches, 2)
        if kept_tokens is not None:
            places = places[kept_tokens]
        angles = (2 * math.pi * places[:, :, None] * self.theta**-exponents).flatten(1).tile(2)
        return angles.cos(), angles.sin()


def rotate(tokens: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotates the patch tokens, which are the last, of `(batch, heads, tokens, head_dim)` in pairs of channels half a head apart."""
    cosines, sines = (part.to(tokens.dtype) for part in rotation)
    num_prefix = tokens.shape[2] - cosines.shape[0]
    prefix, patches = tokens[:, :, :num_prefix], tokens[:, :, num_prefix:]
    first, second = patches.chunk(2, dim=3)
    turned = torch.cat([-second, first], dim=3)
    return torch.cat([prefix, patches * cosines + turned * sines], dim=2)


class ViTEmbeddings(nn.Module):
    """Patch tokens with positions, class token and registers before them, for any image size divisible by the patch."""

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__()
        height, width = config.image_height_width
        self.grid_size = (height // config.patch_size, width // config.patch_size)
        self.position_interpolation = config.position_interpolation
        self.position_interpolation_offset = config.position_interpolation_offset
        self.patch_embeddings = ViTPatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_class_token else None
        registers = config.num_register_tokens
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, config.hidden_size)) if registers else None
        self.mask_token: nn.Parameter | None = None
        if config.use_mask_token:
            self.add_mask_token()
        self.num_class_tokens = int(config.use_class_token)
        self.num_prefix_tokens = self.num_class_tokens + registers  # what precedes the patch tokens
        self.position_embeddings: nn.Parameter | None = None
        self.rotary: ViTRotaryPositions | None = None
        if config.position_embedding_type == "rope":
            self.rotary = ViTRotaryPositions(config)
        else:
            num_positions = self.num_class_tokens + self.grid_size[0] * self.grid_size[1]
            self.position_embeddings = nn.Parameter(torch.zeros(1, num_positions, config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.embedding_norm else None

    def forward(
        self,
        pixel_values: torch.Tensor,
        kept_tokens: torch.Tensor | None = None,
        use_positions: bool = True,
        bool_masked_pos: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Maps `(batch, channels, height, width)` to `(batch, tokens, hidden_size)`: class token, registers, patches.

        `kept_tokens (kept,)`, raster indices, leaves the other patch tokens out after positions are added;
        `use_positions=False` adds none; `bool_masked_pos (batch, patches)` puts the mask token in the place of patches.
        """
        tokens = self.patch_embeddings(pixel_values)  # (B, h, w, D)
        if bool_masked_pos is not None:
            tokens = self._mask(tokens, bool_masked_pos)
        positions = self.position_embeddings if use_positions else None
        if positions is not None:
            tokens = tokens + resample_positions(
                positions[0, self.num_class_tokens :].unflatten(0, self.grid_size),
                tokens.shape[1],
                tokens.shape[2],
                self.position_interpolation_offset,
                self.position_interpolation,
            )
        tokens = tokens.flatten(1, 2)
        if kept_tokens is not None:
            tokens = tokens[:, kept_tokens]
        prefix = []
        if self.cls_token is not None:
            prefix.append(self.cls_token if positions is None else self.cls_token + positions[:, :1])
        if self.register_tokens is not None:
            prefix.append(self.register_tokens)
        if prefix:  # shape[0], not len(), which would fix the batch size of an exported model
            tokens = torch.cat([*(token.expand(tokens.shape[0], -1, -1) for token in prefix), tokens], dim=1)
        tokens = tokens.contiguous()  # without prefix they lie as the convolution left them, channels first
        return tokens if self.norm is None else self.norm(tokens)

    def rotation(self, pixel_values: torch.Tensor, kept_tokens: torch.Tensor | None = None) -> Rotation | None:
        """What attention rotates the patch tokens of these images by; None where positions are added instead."""
        if self.rotary is None:
            return None
        rows, columns = (side // self.patch_embeddings.patch_size for side in pixel_values.shape[-2:])
        return self.rotary(rows, columns, kept_tokens, pixel_values.device)

    def add_mask_token(self) -> None:
        """Gives the embeddings a mask token, where they have none; for pretraining, so that no other class has one."""
        if self.mask_token is None:
            self.mask_token = nn.Parameter(torch.zeros(1, self.patch_embeddings.out_channels))

    def _mask(self, tokens: torch.Tensor, bool_masked_pos: torch.Tensor) -> torch.Tensor:
        """Puts the mask token in the place of some of `tokens (batch, rows, columns, hidden_size)`."""
        batch_size, rows, columns, _ = tokens.shape
        if self.mask_token is None:
            raise ValueError("bool_masked_pos needs a mask token: set use_mask_token=True in the configuration")
        if bool_masked_pos.shape != (batch_size, rows * columns) or bool_masked_pos.dtype != torch.bool:
            raise ValueError(
                f"bool_masked_pos must be bool of shape {(batch_size, rows * columns)}, got {bool_masked_pos.dtype} of "
                f"{tuple(bool_masked_pos.shape)}"
            )
        masked = bool_masked_pos.view(batch_size, rows, columns, 1)
        return torch.where(masked, self.mask_token.to(tokens.dtype), tokens)
