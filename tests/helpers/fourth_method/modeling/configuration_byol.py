"""Configuration of BYOL models."""

from huggingface_hub.dataclasses import strict

from .configuration_vit import GeometricViTConfig


@strict
class BYOLConfig(GeometricViTConfig):
    r"""Configuration of all BYOL classes; the trunk's fields are those of `GeometricViTConfig`.

    Args:
        projection_size (`int`, defaults to 256): Channels that student and teacher are compared in.
        predictor_hidden_size (`int`, defaults to 512): Channels within projector and predictor.
    """

    model_type = "byol"

    projection_size: int = 256
    predictor_hidden_size: int = 512


__all__ = ["BYOLConfig"]
