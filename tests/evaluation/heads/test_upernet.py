"""The UPerNet head: the loss of transformers' own model."""

from typing import Any

import pytest
import torch
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from hf_geossl import GTSAConfig
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.heads.segmentation import LinearHead, SegmentationHead
from hf_geossl.evaluation.heads.semantic_fpn import SemanticFPNHead
from hf_geossl.evaluation.heads.upernet import UPerNetHead
from hf_geossl.evaluation.loading import load_encoder
from tests.helpers.supervised import small_model

SMALL: dict[str, Any] = {
    "segmentation_finetune": {},
    "semantic_fpn": {"pyramid_channels": 32, "head_channels": 32},
    "upernet": {"hidden_size": 32, "auxiliary_channels": 16},
}


def heads(encoder: Encoder) -> dict[str, SegmentationHead]:
    return {
        "segmentation_finetune": LinearHead(encoder.width, 17),
        "semantic_fpn": SemanticFPNHead(encoder, 17, **SMALL["semantic_fpn"], dropout=0.1),
        "upernet": UPerNetHead(encoder, 17, **SMALL["upernet"], pool_scales=(1, 2, 3, 6), auxiliary_weight=0.4),
    }


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(small_model())


def test_upernet_has_the_loss_of_transformers_own_model(encoder: Encoder) -> None:
    """The published class, with our neck in the place of its backbone and our decoder's weights."""
    head = heads(encoder)["upernet"].eval()
    assert isinstance(head, UPerNetHead)
    config = UperNetConfig(
        backbone_config=GTSAConfig(
            hidden_size=96, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96, out_indices=[1, 2, 3, 4]
        ),
        hidden_size=32,
        auxiliary_channels=16,
        num_labels=17,
    )
    theirs = UperNetForSemanticSegmentation(config).eval()
    theirs.decode_head.load_state_dict(head.decoder.state_dict())
    theirs.auxiliary_head.load_state_dict(head.auxiliary.state_dict())
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    truth = torch.randint(0, 17, (2, 64, 64), generator=torch.Generator().manual_seed(7))
    truth[:, :9] = 255
    maps = head.neck(encoder.maps(pixels, (0, 0, 1, 2)))
    theirs.backbone.forward_with_filtered_kwargs = lambda *_, **__: type(
        "Maps", (), {"feature_maps": maps, "hidden_states": None, "attentions": None}
    )
    with torch.no_grad():
        outputs = theirs(pixels, labels=truth)
        torch.testing.assert_close(head.compute_loss(encoder, pixels, truth), outputs.loss)
        torch.testing.assert_close(head.predict(encoder, pixels), outputs.logits)
