"""Cards of EquiCoherent name the host; those of other methods say that its task was trained beside them."""

import pytest

from hf_geossl.hub.method_card import method_card
from tests.helpers.methods import METHODS


@pytest.mark.parametrize(
    ("host", "name", "arxiv", "teacher"),
    [
        ("ibot", "iBOT", "2111.07832", True),
        ("dinov2", "DINOv2", "2304.07193", True),
        ("dino", "DINO", "2104.14294", True),
        ("vicreg", "VICReg", "2105.04906", False),
        ("simclr", "SimCLR", "2002.05709", False),
    ],
)
def test_the_host_is_cited_beside_the_task_and_alone_without_it(
    host: str, name: str, arxiv: str, teacher: bool
) -> None:
    both = method_card(METHODS["equicoherent"].config(host=host))
    assert (both.paper.name, both.host.name, both.host.arxiv) == ("EquiCoherent", name, arxiv)  # type: ignore[union-attr]
    assert (both.tags, both.teacher, len(both.citations)) == ((host,), teacher, 2)
    assert {"transformation", "num_intermediate"} <= set(both.fields)
    alone = method_card(METHODS["equicoherent"].config(host=host, transformation=None))
    assert (alone.paper.name, alone.paper.arxiv, alone.host) == (name, arxiv, None)
    assert alone.about == f"{name} alone, as a baseline: no image is reconstructed."
    assert (alone.tags, alone.teacher) == ((host,), teacher)


@pytest.mark.parametrize("name", ["gtsa", "loca"])
def test_other_methods_say_that_they_reconstruct(name: str) -> None:
    without, beside = (method_card(METHODS[name].config(reconstruction=task)) for task in (None, "blur"))
    assert beside.about.startswith(without.about)
    assert "arXiv 2503.18753" in beside.about
    assert "2503.18753" not in without.about
    assert set(beside.fields) - set(without.fields) == {
        "reconstruction", "num_intermediate", "reconstruct_final", "reconstruction_weight", "equivariant_features",
    }  # fmt: skip
    assert beside.paper == without.paper
