"""Configuration of GTSA models."""

from huggingface_hub.dataclasses import strict

from .configuration_vit import ReconstructingViTConfig


@strict
class GTSAConfig(ReconstructingViTConfig):
    r"""Configuration of all GTSA classes.

    The defaults are the paper's `small` (384 wide, 12 deep, 6 heads); `tiny` is 192/12/3 and `base` 768/12/12 (`hidden_size`, `num_hidden_layers`, `num_attention_heads`). The trunk's fields are
    those of `GeometricViTConfig`, the reconstruction's those of `ReconstructingViTConfig`.

    Args:
        projector_hidden_size (`int`, defaults to 384): Channels of the projector's 3 x 3 convolutions.
        projection_size (`int`, defaults to 768): Channels of the maps that teacher and student are compared in.
        predictor_hidden_size (`int`, defaults to 768): Channels of the predictor's 3 x 3 convolution.
        rotation_hidden_sizes (`tuple[int, ...]`, defaults to `(768, 768, 128)`): Widths of the rotation head.
        roi_output_sizes (`tuple[int, int]`, defaults to `(10, 4)`): Cells a side that the overlap is pooled to, for
            global and local student views.
        num_matches (`tuple[int, int]`, defaults to `(98, 18)`): Patch correspondences of a pair, in each direction,
            for global and local student views; never more than there are tokens.
        correspondence_weight (`float`, defaults to 0.5): Weight of the patch-correspondence loss.
        rotation_weight (`float`, defaults to 0.5): Weight of the rotation loss.
        position_interpolation_offset (`float`, defaults to 0.1): Added to the new grid size when positions are
            resampled, as the authors' code does; 0 resamples to the exact size.
        drop_path_rate (`float`, defaults to 0.1): Stochastic depth of the student; the teacher has none.

    Source: arXiv 2304.08014; values as in the authors' configuration `gtsa_small`.
    """

    model_type = "gtsa"

    drop_path_rate: float | int = 0.1
    projector_hidden_size: int = 384
    projection_size: int = 768
    predictor_hidden_size: int = 768
    rotation_hidden_sizes: list[int] | tuple[int, ...] = (768, 768, 128)
    roi_output_sizes: list[int] | tuple[int, int] = (10, 4)
    num_matches: list[int] | tuple[int, int] = (98, 18)
    correspondence_weight: float | int = 0.5
    rotation_weight: float | int = 0.5
    position_interpolation_offset: float | int = 0.1

    def validate_objective(self) -> None:
        """Part of `@strict` validation."""
        pair = "two positive integers (global, local)"
        self.require(pair, lambda sizes: len(sizes) == 2 and min(sizes) >= 1, "roi_output_sizes", "num_matches")
        widths = ("projector_hidden_size", "projection_size", "predictor_hidden_size")
        self.require("at least 1", lambda width: width >= 1, *widths)
        self.require("one or more widths", lambda widths: min(widths, default=0) >= 1, "rotation_hidden_sizes")
