"""Colour, blur and normalisation of a batch of views, on the device that holds it.

The same draws (`ColorParameters`) have two renderings: `affine_color`, which folds the whole colour chain of a view and
the normalisation into one 3x4 matrix, and `exact_color`, which follows the float operations of torchvision or TensorFlow
(`ColorRecipe.operations`) one by one. Both take values in 0..255 and give normalised float32.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from hf_geossl.views.color import BRIGHTNESS, CONTRAST, HUE, SATURATION, ColorParameters, ColorRecipe
from hf_geossl.views.memory import empty_batch

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's `rgb_to_grayscale`
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CPU_PIECE = 600_000  # numbers; 2.4 MB as float32
SMALLEST_WEIGHT = 1e-7  # of a kernel of a blur; smaller ones change nothing that float32 shows


def render_color(
    images: torch.Tensor,
    parameters: ColorParameters | None,
    *,
    recipe: ColorRecipe,
    mean: Sequence[float],
    std: Sequence[float],
    exact: bool = False,
    unrounded: bool = False,
) -> torch.Tensor:
    """Colour, blur, solarisation and normalisation of a batch of views.

    Args:
        images (`torch.Tensor` of shape `(views, 3, height, width)`): uint8, RGB.
        parameters (`ColorParameters`, *optional*): what to do to each view, on any device; None only normalises. The
            host waits for the device only if they lie on an accelerator (for the numbers of blurred and solarised views).
        recipe (`ColorRecipe`): what the parameters were drawn from; it knows which operations are meant and how far the
            blur reaches.
        mean, std (`Sequence[float]`): of each channel, for images in [0, 1].
        exact (`bool`): `exact_color` instead of `affine_color`.
        unrounded (`bool`): the images are float32 in 0..255, not rounded.

    Returns:
        `torch.Tensor` of shape `(views, 3, height, width)`: float32, normalised, on the images' device.

    Raises:
        TypeError: images that are not uint8 (float32 if `unrounded`).
    """
    if unrounded and images.dtype != torch.float32:
        raise TypeError(f"images must be float32 in 0..255 if unrounded, got {images.dtype}; give the crops of views()")
    if not unrounded and images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 in 0..255, got {images.dtype}; give the crops that views() made")
    if parameters is None:
        return normalize_(_to_unit_range(images), mean, std)
    color = exact_color if exact else affine_color
    colored = color(images, parameters, mean=mean, std=std, operations=recipe.operations)
    black = None
    if recipe.blur_border == "zero":
        # Black is -mean / std by now. For other borders it does not matter: the kernel sums to 1, so that blurring before
        # or after normalisation is the same.
        black = colored.new_tensor([-m / s for m, s in zip(mean, std, strict=True)])[:, None, None]

    def blur(sharp: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        if black is None:
            return gaussian_blur(sharp, sigma, recipe.blur_radius)
        return gaussian_blur(sharp - black, sigma, recipe.blur_radius, border="zero").add_(black)

    chosen = parameters.blur.nonzero().flatten()
    pieces: Sequence[torch.Tensor] = [chosen] if len(chosen) else []
    if colored.device.type == "cpu":
        widest_first = chosen[parameters.blur_sigma[chosen].argsort(descending=True)]
        pieces = widest_first.split(_cpu_piece(colored)) if len(chosen) else []
    for piece in pieces:
        sigma = parameters.blur_sigma[piece].to(images.device, non_blocking=True)
        piece = piece.to(images.device, non_blocking=True)
        colored.index_copy_(0, piece, blur(colored.index_select(0, piece), sigma))
    chosen = parameters.solarize.nonzero().flatten()
    if len(chosen):
        chosen = chosen.to(images.device, non_blocking=True)
        # min(v, 1 - v), carried into normalised values
        one = colored.new_tensor([(1 - 2 * m) / s for m, s in zip(mean, std, strict=True)])[:, None, None]
        bright = colored.index_select(0, chosen)
        colored.index_copy_(0, chosen, torch.minimum(bright, one - bright))
    return colored


def normalize_(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Subtracts the mean of each channel and divides by its standard deviation, in place.

    Args:
        images (`torch.Tensor` of shape `(views, 3, height, width)`): float, in [0, 1].
        mean, std (`Sequence[float]`): one number a channel.

    Returns:
        `torch.Tensor`: the same tensor.
    """
    return images.sub_(images.new_tensor(mean)[:, None, None]).div_(images.new_tensor(std)[:, None, None])


def affine_color(
    images: torch.Tensor,
    parameters: ColorParameters,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    operations: str = "torchvision",
) -> torch.Tensor:
    """The colour chain of each view as one affine map of its pixels, then clamped to [0, 1] and normalised.

    Differs from `exact_color` in two ways: values are clamped once, at the end of the chain, and the hue turns linearly
    (`hue_matrices`), as does TensorFlow's saturation (`color_matrices`). With GTSA's recipe on crops of six photographs
    the mean absolute difference is 0.010 where the colour change itself is 0.146; over many draws the means of the
    channels agree to 0.004 and their standard deviations to 2 % (values in [0, 1]). With LOCA's recipe the
    difference is 0.012 where the change is 0.171, the same 7 %, and the statistics agree as well. On a CPU it takes a
    quarter of the time or less.

    Args:
        images (`torch.Tensor` of shape `(views, 3, height, width)`): in 0..255, RGB.
        parameters (`ColorParameters`): of these views, on any device; blur and solarisation are not done here.
        mean, std (`Sequence[float]`): normalisation of each channel, for images in [0, 1].
        operations (`str`): whose operations are meant, see `ColorRecipe`.

    Returns:
        `torch.Tensor` of shape `(views, 3, height, width)`: float32, normalised.
    """
    parameters = parameters.to(images.device)
    if images.device.type == "cpu":
        images = images.contiguous()  # read twice below
    # In pieces that stay in a CPU's cache, in memory that is used again: pages that are fresh cost more than the work.
    piece = min(len(images), _cpu_piece(images)) if images.device.type == "cpu" else len(images)
    parts = [slice(i, i + piece) for i in range(0, len(images), piece)]
    pixels = empty_batch((piece, 4, images[0, 0].numel()), torch.float32, images.device)  # red, green, blue and a one
    pixels[:, 3] = 1
    means = []
    for part in parts:
        color = pixels[: len(images[part]), :3]
        means.append(color.copy_(images[part].flatten(2)).mean(dim=2))
    mean_color = torch.cat(means)  # (views, 3)
    # A sixteenth of the pixels tells well enough how much one hue prevails.
    coherence = torch.cat([_hue_coherence(thinned) for thinned in images[:, :, ::4, ::4].split(16 * piece)])
    hue = hue_matrices(parameters.hue, mean_color, coherence)
    if operations == "torchvision":
        mean_map, deviation_map = color_matrices(parameters, hue)
    else:
        mean_map, deviation_map = tensorflow_color_matrices(parameters, hue, mean_color)
    channel_mean, channel_std = torch.tensor([mean, std], device=images.device)[:, :, None]
    # mean_map @ mean + deviation_map @ (pixel - mean) = deviation_map @ pixel + offset
    offset = (mean_map - deviation_map) @ mean_color[:, :, None]  # (views, 3, 1)
    if operations == "tensorflow":
        # Every step keeps grey as it is, so that what brightness adds can pass all of them, wherever in the chain it stands.
        added = 255 * torch.where(parameters.jitter, parameters.brightness, 0.0)
        offset = offset + mean_map.sum(dim=2, keepdim=True) * added[:, None, None]
    offset = (offset / 255 - channel_mean) / channel_std
    matrix = deviation_map / (255 * channel_std)
    matrix = torch.cat([matrix, offset], dim=2)  # (views, 3, 4)
    out = empty_batch(images.shape, torch.float32, images.device)
    for part in parts:
        source, rendered = pixels[: len(images[part])], out[part].flatten(2)
        if len(parts) > 1:
            source[:, :3].copy_(images[part].flatten(2))
        torch.bmm(matrix[part], source, out=rendered)
        for channel in range(3):  # the clamp to [0, 1], carried into normalised values
            rendered[:, channel].clamp_(-mean[channel] / std[channel], (1 - mean[channel]) / std[channel])
    return out


def _cpu_piece(images: torch.Tensor) -> int:
    """How many of `images` (`(views, 3, height, width)`) a CPU takes at a time."""
    return max(1, CPU_PIECE // images[0].numel())


def _hue_coherence(images: torch.Tensor) -> torch.Tensor:
    """How much one hue prevails in each of `images` (`(views, 3, height, width)`): `(views,)`, see `hue_matrices`."""
    pixels = images.float()
    chroma = pixels - pixels.mean(dim=1, keepdim=True)
    spread = chroma.square().sum(dim=1).mean(dim=(1, 2))
    return chroma.mean(dim=(2, 3)).square().sum(dim=1) / spread.clamp_min(1e-6)


def color_matrices(parameters: ColorParameters, hue: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The colour chain of each view as two linear maps: of its mean colour, and of deviations from the mean.

    Brightness, saturation, hue and grey treat both alike. Contrast about the mean grey level of the image *as it stands
    in the chain* scales deviations by its factor and blends the mean colour with its own grey level: linear in each. So
    the chain without clamps is `mean_map @ mean + deviation_map @ (pixel - mean)`, exactly and in any order.

    Args:
        parameters (`ColorParameters`): of `views` views.
        hue (`torch.Tensor` of shape `(views, 3, 3)`): what stands for the turn of hue, see `hue_matrices`.

    Returns:
        `tuple(torch.Tensor, torch.Tensor)`: `mean_map` and `deviation_map`, each of shape `(views, 3, 3)`, float32.
    """
    identity = torch.eye(3, device=hue.device)
    gray = torch.tensor(GRAY_WEIGHTS, device=hue.device).expand(3, 3)

    def blend(factor: torch.Tensor) -> torch.Tensor:
        return factor[:, None, None] * identity + (1 - factor[:, None, None]) * gray

    brightness = parameters.brightness[:, None, None] * identity
    contrast = parameters.contrast[:, None, None] * identity
    saturation = blend(parameters.saturation)
    mean_steps = torch.stack([brightness, blend(parameters.contrast), saturation, hue], dim=1)
    deviation_steps = torch.stack([brightness, contrast, saturation, hue], dim=1)
    return _chain_matrices(parameters, mean_steps, deviation_steps)


def tensorflow_color_matrices(
    parameters: ColorParameters, hue: torch.Tensor, mean_color: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`color_matrices` for TensorFlow's operations; what brightness adds is left to the caller.

    Contrast about the mean of each channel scales deviations and leaves the mean. Saturation moves a pixel away from its
    largest channel, in grey: `factor * pixel + (1 - factor) * largest`. That is linear where one channel is the largest
    everywhere; the stand-in takes the channel that is the largest of the view's mean colour when saturation's turn
    comes (exact for all pixels that agree, up to S = 1). The hue's stand-in errs more (see `affine_color`).

    Args:
        parameters (`ColorParameters`): of `views` views.
        hue (`torch.Tensor` of shape `(views, 3, 3)`): what stands for the turn of hue, see `hue_matrices`.
        mean_color (`torch.Tensor` of shape `(views, 3)`): mean of the view's pixels, in any unit.

    Returns:
        `tuple(torch.Tensor, torch.Tensor)`: `mean_map` and `deviation_map`, each of shape `(views, 3, 3)`, float32.
    """
    identity = torch.eye(3, device=hue.device)
    unchanged = identity.expand_as(hue)
    turned = (hue @ mean_color[:, :, None])[:, :, 0]
    place = parameters.order.argsort(dim=1)  # (views, 4): when each operation's turn comes
    mean_then = torch.where((place[:, HUE] < place[:, SATURATION])[:, None], turned, mean_color)
    largest = F.one_hot(mean_then.argmax(dim=1), 3).float()[:, None]  # (views, 1, 3): every row reads that channel
    factor = parameters.saturation[:, None, None]
    saturation = factor * identity + (1 - factor) * largest
    contrast = parameters.contrast[:, None, None] * identity
    mean_steps = torch.stack([unchanged, unchanged, saturation, hue], dim=1)
    deviation_steps = torch.stack([unchanged, contrast, saturation, hue], dim=1)
    return _chain_matrices(parameters, mean_steps, deviation_steps)


def _chain_matrices(
    parameters: ColorParameters, mean_steps: torch.Tensor, deviation_steps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Products of the four steps of each view (`(views, 4, 3, 3)`, by code) in the view's order, and of grey."""
    identity = torch.eye(3, device=mean_steps.device)
    gray = torch.tensor(GRAY_WEIGHTS, device=mean_steps.device).expand(3, 3)
    steps = torch.stack([mean_steps, deviation_steps])  # (2, views, 4, 3, 3)
    index = parameters.order[None, :, :, None, None].expand_as(steps)
    first, second, third, fourth = steps.gather(2, index).unbind(2)
    maps = fourth @ third @ second @ first
    maps = torch.where(parameters.jitter[:, None, None], maps, identity)
    maps = torch.where(parameters.grayscale[:, None, None], gray @ maps, maps)
    return maps[0], maps[1]


def hue_matrices(turns: torch.Tensor, mean_color: torch.Tensor, coherence: torch.Tensor) -> torch.Tensor:
    """Linear stand-in for HSV's turn of hue, for each view.

    HSV moves colours along a hexagon; the turn is linear within a piece of it. A view in which one hue prevails gets
    the linear map of the piece that holds its mean colour (exact for all pixels there); a view of mixed hues gets the
    rotation about the grey axis of RGB (the average over the circle; exact for thirds of a turn); in between both are
    weighted by the coherence. Brightness, contrast and saturation change neither the mean's hue nor the coherence, so
    that the matrix is the same wherever in the chain it stands.

    Args:
        turns (`torch.Tensor` of shape `(views,)`): in full turns.
        mean_color (`torch.Tensor` of shape `(views, 3)`): mean of the view's pixels, in any unit.
        coherence (`torch.Tensor` of shape `(views,)`): squared length of the mean chroma over the mean squared length of
            chroma, in [0, 1].

    Returns:
        `torch.Tensor` of shape `(views, 3, 3)`: float32; every row sums to 1, so grey stays grey.
    """
    # Row 0 of the circulant matrix that turns about (1, 1, 1); the others are its cyclic shifts.
    thirds = torch.arange(3, device=turns.device) / 3
    row = (1 + 2 * torch.cos(2 * math.pi * (turns[:, None] + thirds))) / 3
    rotation = torch.stack([row.roll(shift, dims=1) for shift in range(3)], dim=1)

    sixths = _hue_sixths(mean_color)[0]
    top = mean_color.argmax(dim=1)
    highest, lowest = F.one_hot(top, 3).float()[:, None], F.one_hot(mean_color.argmin(dim=1), 3).float()[:, None]
    # sixths = 2 * top + slant . color / chroma
    slant = (F.one_hot((top + 1) % 3, 3) - F.one_hot((top + 2) % 3, 3)).float()[:, None]
    k = (sixths[:, None] + _hue_channels(turns) + 6 * turns[:, None]) % 6
    depth = torch.minimum(k, 4 - k).clamp(0, 1)  # output = largest - chroma * depth
    slope = (k < 1).float() - ((k > 3) & (k < 4)).float()
    constant = depth - slope * (sixths - 2 * top)[:, None]
    piece = highest - constant[:, :, None] * (highest - lowest) - slope[:, :, None] * slant
    return torch.lerp(rotation, piece, coherence[:, None, None].clamp(0, 1))


def exact_color(
    images: torch.Tensor,
    parameters: ColorParameters,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    operations: str = "torchvision",
) -> torch.Tensor:
    """The colour chain of each view by a library's float operations: one by one, clamped after each, hue in HSV.

    Args:
        images (`torch.Tensor` of shape `(views, 3, height, width)`): in 0..255, RGB.
        parameters (`ColorParameters`): of these views, on any device; blur and solarisation are not done here.
        mean, std (`Sequence[float]`): normalisation of each channel, for images in [0, 1].
        operations (`str`): whose operations are meant, see `ColorRecipe`.

    Returns:
        `torch.Tensor` of shape `(views, 3, height, width)`: float32, normalised.

    Source: torchvision `transforms.v2.functional`: adjust_brightness, _contrast, _saturation, _hue, rgb_to_grayscale;
    `tf.image`: adjust_brightness, _contrast, _saturation, _hue.
    """
    out = _to_unit_range(images)
    tensorflow = operations == "tensorflow"
    chain = {
        BRIGHTNESS: (add_brightness if tensorflow else adjust_brightness, parameters.brightness),
        CONTRAST: (adjust_channel_contrast if tensorflow else adjust_contrast, parameters.contrast),
        SATURATION: (adjust_hsv_saturation if tensorflow else adjust_saturation, parameters.saturation),
        HUE: (adjust_hue, parameters.hue),
    }
    for step in range(4):
        for code, (operation, amount) in chain.items():
            chosen = (parameters.jitter & (parameters.order[:, step] == code)).nonzero().flatten()
            if len(chosen):
                where = chosen.to(images.device)
                out.index_copy_(0, where, operation(out.index_select(0, where), amount[chosen].to(images.device)))
    chosen = parameters.grayscale.nonzero().flatten().to(images.device)
    out.index_copy_(0, chosen, _gray_level(out.index_select(0, chosen)).expand(-1, 3, -1, -1))
    return normalize_(out, mean, std)


def adjust_brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scales `images` (`(views, 3, height, width)`, in [0, 1]) by a factor a view (`(views,)`); clamped to [0, 1]."""
    return (images * factor[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scales `images` (`(views, 3, height, width)`, in [0, 1]) about their mean grey level by a factor a view (`(views,)`); clamped to [0, 1]."""
    return torch.lerp(_gray_level(images).mean(dim=(2, 3), keepdim=True), images, factor[:, None, None, None]).clamp_(
        0, 1
    )


def adjust_saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scales `images` (`(views, 3, height, width)`, in [0, 1]) about each pixel's grey level by a factor a view (`(views,)`); clamped to [0, 1]."""
    return torch.lerp(_gray_level(images), images, factor[:, None, None, None]).clamp_(0, 1)


def adjust_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turns the HSV hue of `images` (`(views, 3, height, width)`, in [0, 1]) by `turns` (`(views,)`, in full turns)."""
    sixths, largest, chroma = _hue_sixths(images)
    start = _hue_channels(turns) + 6 * turns[:, None]
    k = (sixths[:, None] + start[:, :, None, None]) % 6
    return largest[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def add_brightness(images: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Adds a number a view (`(views,)`) to `images` (`(views, 3, height, width)`, in [0, 1]); clamped to [0, 1]."""
    return (images + delta[:, None, None, None]).clamp_(0, 1)


def adjust_channel_contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scales `images` (`(views, 3, height, width)`, in [0, 1]) about the mean of each channel by a factor a view (`(views,)`); clamped to [0, 1]."""
    return torch.lerp(images.mean(dim=(2, 3), keepdim=True), images, factor[:, None, None, None]).clamp_(0, 1)


def adjust_hsv_saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scales the HSV saturation of `images` (`(views, 3, height, width)`, in [0, 1]) by a factor a view (`(views,)`), up to 1."""
    largest = images.amax(dim=1, keepdim=True)
    chroma = largest - images.amin(dim=1, keepdim=True)
    # S = chroma / largest, so that min(factor * S, 1) scales all distances to the largest channel alike.
    factor = torch.minimum(factor[:, None, None, None], largest / torch.where(chroma == 0, 1.0, chroma))
    return torch.lerp(largest, images, factor)


def solarize(images: torch.Tensor) -> torch.Tensor:
    """Inverts the values of `images` (in [0, 1]) from one half on: v -> 1 - v."""
    return torch.minimum(images, 1 - images)


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor, radius: int, *, border: str = "replicate") -> torch.Tensor:
    """Gaussian blur with a width of its own for each view; on a CPU the quicker the more the first views are the widest.

    With a replicated border it is Pillow's, with a zero one that of LOCA (a convolution of padding "same").

    Pillow's `GaussianBlur(sigma)`, which GTSA uses, approximates this by three box blurs of whole grey levels; the mean
    absolute difference is 0.002 of the range for sigma 0.3 to 2.

    Args:
        images (`torch.Tensor` of shape `(views, channels, height, width)`): float.
        sigma (`torch.Tensor` of shape `(views,)`): standard deviation in pixels, above 0.
        radius (`int`): of the kernel in pixels.
        border (`str`): what lies outside: "replicate" (the border pixels go on) or "zero".

    Returns:
        `torch.Tensor`: blurred images, same shape.
    """
    # A sum of shifted copies: the number of views changes from call to call, and convolution libraries would prepare
    # themselves anew for each number, which costs more than the blur.
    distance = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.softmax(-0.5 * (distance / sigma[:, None]).square(), dim=1)
    needed = [len(images)] * (2 * radius + 1)  # how many views, from the first on, a tap is summed for
    if images.device.type == "cpu":
        wanted = (kernel >= SMALLEST_WEIGHT).t().tolist()
        needed = [max((view + 1 for view, counts in enumerate(tap) if counts), default=0) for tap in wanted]
    views, channels, height, width = images.shape
    wide = empty_batch((views, channels, height, width + 2 * radius), images.dtype, images.device)
    high = empty_batch((views, channels, height + 2 * radius, width), images.dtype, images.device)
    wide.narrow(3, radius, width).copy_(images)
    _blur_axis(wide, high.narrow(2, radius, height), kernel, needed, axis=3, border=border)
    blurred = wide.flatten()[: images.numel()].view(images.shape)
    _blur_axis(high, blurred, kernel, needed, axis=2, border=border)
    return blurred


def _blur_axis(
    padded: torch.Tensor, out: torch.Tensor, kernel: torch.Tensor, needed: list[int], *, axis: int, border: str
) -> None:
    """Blurs what lies inside `padded`, whose margin is still to be filled, along one axis into `out`."""
    radius, size = kernel.shape[1] // 2, out.shape[axis]
    for margin, edge in ((0, radius), (radius + size, radius + size - 1)):
        if border == "replicate":
            padded.narrow(axis, margin, radius).copy_(padded.narrow(axis, edge, 1))
        else:
            padded.narrow(axis, margin, radius).zero_()
    torch.mul(padded.narrow(axis, radius, size), kernel[:, radius, None, None, None], out=out)
    for tap, views in enumerate(needed):
        if views and tap != radius:
            shifted = padded[:views].narrow(axis, tap, size)
            out[:views].addcmul_(shifted, kernel[:views, tap, None, None, None])


def _to_unit_range(images: torch.Tensor) -> torch.Tensor:
    return images.to(torch.float32, copy=True).div_(255)


def _gray_level(images: torch.Tensor) -> torch.Tensor:
    red, green, blue = images.unbind(1)
    return (GRAY_WEIGHTS[0] * red + GRAY_WEIGHTS[1] * green + GRAY_WEIGHTS[2] * blue)[:, None]


def _hue_sixths(colors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """HSV hue (in sixths of a turn, -1 to 5), value and chroma of `colors` (`(views, 3, ...)`), each `(views, ...)`."""
    red, green, blue = colors.unbind(1)
    largest = colors.amax(dim=1)
    chroma = largest - colors.amin(dim=1)
    divisor = torch.where(chroma == 0, 1.0, chroma)
    from_green = torch.where(largest == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    return torch.where(largest == red, (green - blue) / divisor, from_green), largest, chroma


def _hue_channels(like: torch.Tensor) -> torch.Tensor:
    """Phase of red, green and blue on the hue circle, in sixths of a turn: channel = value - chroma * trapezoid(phase + hue)."""
    return torch.tensor([[5.0, 3.0, 1.0]], device=like.device)
