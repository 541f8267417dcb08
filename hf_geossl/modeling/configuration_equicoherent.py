"""Configuration of EquiCoherent models."""

import math

from huggingface_hub.dataclasses import strict

from .configuration_vit import TRANSFORMATIONS, GeometricViTConfig

HOSTS = ("ibot", "dinov2", "dino", "vicreg", "simclr")
# the paper's d_patch and d_equi, and prototypes of each host's head; DINO's split is iBOT's, SimCLR's is VICReg's
_PATCH_FEATURES = {"ibot": 8192, "dinov2": 2048, "dino": 8192, "vicreg": 512, "simclr": 512}
_EQUIVARIANT_SHARE = {"ibot": 4, "dinov2": 4, "dino": 4, "vicreg": 2, "simclr": 2}
_PROTOTYPES = {"ibot": 8192, "dinov2": 65536, "dino": 65536, "vicreg": 0, "simclr": 0}


@strict
class EquiCoherentConfig(GeometricViTConfig):
    r"""Configuration of all EquiCoherent classes: a host method, and the reconstruction of a transformation's steps.

    The trunk's fields are those of `GeometricViTConfig`; the defaults are ViT-S/16 on iBOT.

    Args:
        host (`str`, defaults to `"ibot"`): `"ibot"`, `"dinov2"`, `"dino"` (all with a teacher), `"vicreg"` or `"simclr"`.
        transformation (`str`, *optional*, defaults to `"se2"`): What the second global view goes through: `"se2"`,
            `"rotation"`, `"translation"`, `"color"` or `"blur"`; None is the plain host.
        num_intermediate (`int`, defaults to 2): Intermediate images (K) that are reconstructed, each by its own decoder.
        reconstruct_final (`bool`, defaults to `False`): Whether the second global view is reconstructed too.
        reconstruction_weight (`float`, defaults to 1.0): Weight of the reconstruction loss; 0 is "host + g": the
            transformation without decoders.
        recon_unmasked (`bool`, defaults to `False`): Whether hosts that mask encode the global views once more
            without masks for the reconstruction.
        patch_features (`int`, *optional*): Channels after the split's linear layer (the paper's d_patch); by default
            the paper's: 8192 for iBOT (and DINO), 2048 for DINOv2, 512 for VICReg (and SimCLR).
        equivariant_features (`int`, *optional*): The last of them, which go to the decoders (d_equi); a quarter by default,
            half for VICReg and SimCLR. The host's loss gets the others.
        split (`str`, defaults to `"feature"`): Where channels are divided: `"feature"`, a linear layer before the host's
            head, or `"logits"` (iBOT alone), the outputs of the head.
        decoder_hidden_size (`int`, *optional*): Channels of the first stage of a decoder (C0); by default half of
            `hidden_size`, at most 256.
        head_hidden_size, head_bottleneck_size (`int`, default to 2048 and 256): Widths of the host's head.
        num_prototypes (`int`, *optional*): Outputs of the head; by default 8192 for iBOT and 65536 for DINO and DINOv2.
            With the logits split they are `patch_features - equivariant_features`. At least 2.
        norm_last_layer (`bool`, *optional*): Whether prototypes keep unit length; by default for DINO alone.
        shared_head (`bool`, defaults to `True`): Whether class token and patches share the head.
        centering (`str`, defaults to `"softmax"`): How DINOv2's teacher is balanced: `"softmax"` with a center, or
            `"sinkhorn"`.
        sinkhorn_iterations (`int`, defaults to 3): Rounds of the latter.
        center_momentum (`float`, defaults to 0.9): Share of the centers that stays in each step.
        student_temperature (`float`, defaults to 0.1), teacher_temperature (`float`, defaults to 0.07): Of the
            softmaxes; the trainer warms the teacher's up.
        class_loss_weight, patch_loss_weight (`float`, default to 1.0): Weights of the losses of class token and patches.
        koleo_weight (`float`, defaults to 0.1): Weight of DINOv2's KoLeo loss.
        projector_sizes (`tuple[int, ...]`, defaults to `(1024, 1024, 1024)`): Widths of the projector of VICReg and
            SimCLR.
        pool (`str`, defaults to `"mean"`): What VICReg and SimCLR compare: the `"mean"` of the patch tokens or the
            `"class"` token.
        invariance_weight, variance_weight, covariance_weight (`float`, default to 10, 10 and 1): Weights of VICReg's
            losses; VICReg's own are 25, 25 and 1.
        contrast_temperature (`float`, defaults to 0.1): Of SimCLR's loss.
        drop_path_rate (`float`, defaults to 0.1): Stochastic depth of the student; the teacher has none.

    Source: arXiv 2503.18753; hosts arXiv 2111.07832, 2304.07193, 2104.14294, 2105.04906 (weights of arXiv 2302.10283)
    and 2002.05709.
    """

    model_type = "equicoherent"

    drop_path_rate: float | int = 0.1
    host: str = "ibot"
    transformation: str | None = "se2"
    num_intermediate: int = 2
    reconstruct_final: bool = False
    reconstruction_weight: float | int = 1.0
    recon_unmasked: bool = False
    patch_features: int | None = None
    equivariant_features: int | None = None
    split: str = "feature"
    decoder_hidden_size: int | None = None
    head_hidden_size: int = 2048
    head_bottleneck_size: int = 256
    num_prototypes: int | None = None
    norm_last_layer: bool | None = None
    shared_head: bool = True
    centering: str = "softmax"
    sinkhorn_iterations: int = 3
    center_momentum: float | int = 0.9
    student_temperature: float | int = 0.1
    teacher_temperature: float | int = 0.07
    class_loss_weight: float | int = 1.0
    patch_loss_weight: float | int = 1.0
    koleo_weight: float | int = 0.1
    projector_sizes: list[int] | tuple[int, ...] = (1024, 1024, 1024)
    pool: str = "mean"
    invariance_weight: float | int = 10.0
    variance_weight: float | int = 10.0
    covariance_weight: float | int = 1.0
    contrast_temperature: float | int = 0.1

    def __post_init__(self, **kwargs: object) -> None:
        if self.host in HOSTS:  # other words are refused below
            if self.patch_features is None:
                self.patch_features = _PATCH_FEATURES[self.host]
            if self.equivariant_features is None:
                self.equivariant_features = self.patch_features // _EQUIVARIANT_SHARE[self.host]
            if self.num_prototypes is None and self.split == "logits":
                self.num_prototypes = self.patch_features - self.equivariant_features
            elif self.num_prototypes is None:
                self.num_prototypes = _PROTOTYPES[self.host]
            if self.norm_last_layer is None:
                self.norm_last_layer = self.host == "dino"
        if self.decoder_hidden_size is None:
            self.decoder_hidden_size = min(256, max(self.hidden_size // 2, 8))
        super().__post_init__(**kwargs)

    @property
    def has_teacher(self) -> bool:
        """Whether the host has a momentum teacher."""
        return self.host in ("ibot", "dinov2", "dino")

    @property
    def masks(self) -> bool:
        """Whether the host masks patches of the global views."""
        return self.host in ("ibot", "dinov2")

    @property
    def num_decoders(self) -> int:
        """Decoders of the reconstruction; 0 where nothing is reconstructed."""
        if self.transformation is None or not self.reconstruction_weight:
            return 0
        return self.num_intermediate + int(self.reconstruct_final)

    def validate_objective(self) -> None:
        """Part of `@strict` validation."""
        self.require_one_of("host", HOSTS)
        self.require_one_of("transformation", (*TRANSFORMATIONS, None))
        self.require_one_of("split", ("feature", "logits"))
        self.require_one_of("centering", ("softmax", "sinkhorn"))
        self.require_one_of("pool", ("mean", "class"))
        if not self.use_class_token:
            raise ValueError("use_class_token must be True, the hosts' losses are about the class token; got False")
        if self.split == "logits" and self.host != "ibot":
            raise ValueError(f"split='logits' divides the outputs of iBOT's head, got host={self.host!r}")
        if self.centering == "sinkhorn" and self.host != "dinov2":
            raise ValueError(f"centering='sinkhorn' is DINOv2's, got host={self.host!r}")
        if self.centering == "sinkhorn":
            self.require("at least 1", lambda rounds: rounds >= 1, "sinkhorn_iterations")
        patch_features, equivariant = self.patch_features or 0, self.equivariant_features or 0
        if not 0 < equivariant < patch_features:
            raise ValueError(
                f"equivariant_features must be at least 1 and below patch_features={patch_features}, so that the host "
                f"gets some, got {equivariant}"
            )
        if self.split == "logits" and self.num_prototypes != patch_features - equivariant:
            raise ValueError(
                f"num_prototypes must be patch_features - equivariant_features = {patch_features - equivariant} where "
                f"split='logits', got {self.num_prototypes}; leave it out or set it to none"
            )
        if self.has_teacher and (self.num_prototypes or 0) < 2:
            raise ValueError(f"num_prototypes must be at least 2, or all targets are equal, got {self.num_prototypes}")
        positive = ["head_hidden_size", "head_bottleneck_size", "decoder_hidden_size"]
        positive += ["student_temperature", "teacher_temperature", "contrast_temperature"]
        self.require("above 0", lambda value: 0 < value < math.inf, *positive)
        weights = ["reconstruction_weight", "class_loss_weight", "patch_loss_weight", "koleo_weight"]
        weights += ["invariance_weight", "variance_weight", "covariance_weight"]
        counts = ("num_intermediate", "sinkhorn_iterations")
        self.require("0 or more", lambda value: 0 <= value < math.inf, *counts, *weights)
        self.require("in [0, 1]", lambda share: 0 <= share <= 1, "center_momentum")
        self.require("one or more widths", lambda widths: min(widths, default=0) >= 1, "projector_sizes")
