"""Settings of images that the views of all methods have: the default of each, and another value."""

from typing import Any

IMAGE_SETTINGS: dict[str, tuple[Any, Any]] = {
    "channels": ("rgb", (3, 2, 1)),
    "channel_names": (("red", "green", "blue"), ("near", "far", "further")),
    "dtype": ("uint8", "uint16"),
    "value_range": (((0.0, 255.0),), ((0.0, 100.0),)),
    "channel_drop_probability": (0.1, 0.2),
    "noise_probability": (0.2, 0.3),
    "noise_sigma": ((0.02, 0.2), (0.02, 0.3)),
}
CHANNELS = ("channel_drop_probability", "noise_probability", "noise_sigma")
