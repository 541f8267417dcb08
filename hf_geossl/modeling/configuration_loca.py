"""Configuration of LOCA models."""

import math

from huggingface_hub.dataclasses import strict

from .configuration_vit import ReconstructingViTConfig


@strict
class LOCAConfig(ReconstructingViTConfig):
    r"""Configuration of all LOCA classes.

    The defaults are the paper's `small` (384 wide, 12 deep, 6 heads); `tiny` is 192/12/3, `base` 768/12/12, `large` 1024/24/16 and `huge` 1280/32/16 (`hidden_size`, `num_hidden_layers`,
    `num_attention_heads`). The trunk's fields are those of `GeometricViTConfig`, the reconstruction's those of
    `ReconstructingViTConfig`; `initializer_range` is not used, LOCA has its own initialisation.

    Args:
        hidden_act (`str`, defaults to `"gelu_pytorch_tanh"`): Activation of all MLPs, the cluster head's too.
        use_class_token (`bool`, defaults to `False`): LOCA has no class token.
        position_interpolation (`str`, defaults to `"bilinear"`): With antialiasing, as `jax.image.resize`.
        head_hidden_size (`int`, defaults to 2048): Width of the cluster head's two hidden layers.
        head_bottleneck_size (`int`, defaults to 256): Width of the space that tokens and prototypes are compared in.
        num_prototypes (`int`, defaults to 4096): Number of clusters.
        student_temperature (`float`, defaults to 0.1): Divides the student's cosines with the prototypes.
        teacher_temperature (`float`, defaults to 0.05): Divides the teacher's.
        sinkhorn_iterations (`int`, defaults to 3): Rounds of balancing the teacher's assignments; 0 leaves the softmax.
        num_kept_query_tokens (`int`, defaults to 70): Tokens of the random query that enter the encoder; all where
            there are no more.
        visible_reference_ratio (`float`, defaults to 0.2): Share of the reference's tokens that queries attend to,
            rounded down; all where that is none or more than there are.
        reference_selection (`str`, defaults to `"consecutive"`): Which those are: a `"consecutive"` run in raster
            order, an `"unstructured"` random subset, or the `"first"`.
        use_cluster_loss (`bool`, defaults to `True`): Patch clustering beside localisation. Without it (an ablation of
            the paper) the reference goes through the student, hidden tokens never enter the encoder, and queries get no
            positions.
        location_weight (`float`, defaults to 1.0): Weight of the location loss; 0 leaves the cluster loss alone (an
            ablation of the paper).
        location_target (`str`, defaults to `"reference"`): What tokens predict: their position in the `"reference"`
            view, or in their own view (`"self"`): single-image position prediction, the peer that the paper compares
            with, without cluster loss and without positions.

    Source: arXiv 2212.02400; values as in the authors' configuration for ViT-B/16.
    """

    model_type = "loca"

    hidden_act: str = "gelu_pytorch_tanh"
    use_class_token: bool = False
    position_interpolation: str = "bilinear"
    head_hidden_size: int = 2048
    head_bottleneck_size: int = 256
    num_prototypes: int = 4096
    student_temperature: float | int = 0.1
    teacher_temperature: float | int = 0.05
    sinkhorn_iterations: int = 3
    num_kept_query_tokens: int = 70
    visible_reference_ratio: float | int = 0.2
    reference_selection: str = "consecutive"
    use_cluster_loss: bool = True
    location_weight: float | int = 1.0
    location_target: str = "reference"

    @property
    def has_cluster_head(self) -> bool:
        """Whether patches are clustered: `use_cluster_loss`, and not with `location_target="self"`."""
        return self.use_cluster_loss and self.location_target == "reference"

    def validate_objective(self) -> None:
        """Part of `@strict` validation."""
        sizes = ("head_hidden_size", "head_bottleneck_size", "num_prototypes", "num_kept_query_tokens")
        self.require("at least 1", lambda size: size >= 1, *sizes)
        self.require("above 0", lambda temperature: temperature > 0, "student_temperature", "teacher_temperature")
        self.require("0 or more", lambda value: 0 <= value < math.inf, "sinkhorn_iterations", "visible_reference_ratio")
        self.require_one_of("reference_selection", ("consecutive", "unstructured", "first"))
        self.require_one_of("location_target", ("reference", "self"))
        if not 0 <= self.location_weight < math.inf or not (self.location_weight or self.has_cluster_head):
            raise ValueError(
                f"location_weight must be 0 or more, and above 0 where there is no cluster loss, got {self.location_weight}"
            )
        if self.location_target == "self" and self.num_decoders:
            raise ValueError(
                "reconstruction needs two views of an image, and location_target='self' trains on one; got "
                f"reconstruction={self.reconstruction!r}, set it to None"
            )
