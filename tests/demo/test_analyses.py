"""What the trunk sees in pictures: components, correspondence, attention, neighbours, each computed beside the demo."""

import numpy as np
import pytest
import torch

from hf_geossl.demo import analyses
from hf_geossl.demo.loading import DemoModel
from tests.helpers.demo_models import noise, pixels, tokens_of
from tests.helpers.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_feature_colors_are_the_principal_components_of_the_teachers_patches(
    opened: dict[str, DemoModel], method: str
) -> None:
    shown = [noise(0), noise(1)]
    flat = torch.stack([tokens_of(opened[method], picture) for picture in shown]).double().flatten(0, 2).numpy()
    _, _, vectors = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    components = (flat - flat.mean(axis=0)) @ vectors[:3].T
    components *= np.where(vectors[:3].sum(axis=1) < 0, -1, 1)
    low, high = np.quantile(components, 0.02, axis=0), np.quantile(components, 0.98, axis=0)
    expected = np.clip((components - low) / (high - low), 0, 1).reshape(2, 4, 4, 3)
    np.testing.assert_allclose(analyses.feature_colors(opened[method], shown), expected, atol=1e-3)
    assert analyses.feature_colors(opened[method], shown, finer=True).shape == (2, 8, 8, 3)


def test_match_is_the_patch_of_largest_cosine_and_looks_back(opened: dict[str, DemoModel]) -> None:
    model = opened["gtsa"]
    first, second = noise(0), noise(1)
    here, there = tokens_of(model, first), tokens_of(model, second)

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a.double() @ b.double() / a.double().norm() / b.double().norm())

    for cell in [(0, 0), (2, 3), (3, 1)]:
        match = analyses.find_match(model, first, second, cell)
        expected = np.array([[cosine(here[cell], there[r, c]) for c in range(4)] for r in range(4)])
        np.testing.assert_allclose(match.cosines, expected, atol=1e-5)
        assert match.best == np.unravel_index(expected.argmax(), (4, 4))
        assert match.cosine == pytest.approx(expected.max(), abs=1e-5)
        back = np.array([[cosine(there[match.best], here[r, c]) for c in range(4)] for r in range(4)])
        assert match.back == np.unravel_index(back.argmax(), (4, 4))
        same = analyses.find_match(model, first, first, cell)
        assert (same.best, same.back) == (cell, cell)


@pytest.mark.parametrize("method", METHODS)
def test_attention_is_the_last_layers(opened: dict[str, DemoModel], method: str) -> None:
    model, picture = opened[method], noise(2)
    prefix = int(model.config.use_class_token)
    whole = model.trunk(pixels(picture), output_attentions=True).attentions[-1][0]
    assert whole.shape == (2, 16 + prefix, 16 + prefix)
    seen = analyses.attention_map(model, picture, (1, 2), 1)
    torch.testing.assert_close(seen, whole[1, prefix + 6, prefix:].view(4, 4), atol=1e-5, rtol=1e-4)
    mean = analyses.attention_map(model, picture, (1, 2), None)
    torch.testing.assert_close(mean, whole[:, prefix + 6, prefix:].mean(0).view(4, 4), atol=1e-5, rtol=1e-4)
    if method == "loca":
        with pytest.raises(ValueError, match="no class token"):
            analyses.attention_map(model, picture, None, 0)
    else:
        seen = analyses.attention_map(model, picture, None, 0)
        torch.testing.assert_close(seen, whole[0, 0, 1:].view(4, 4), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_neighbours_are_ordered_by_cosine_without_the_picture_itself(opened: dict[str, DemoModel], method: str) -> None:
    model, others = opened[method], [noise(seed) for seed in range(5)]
    picture = noise(3)
    trunk = getattr(model.whole.teacher, method)
    with torch.no_grad():
        states = trunk(pixels(picture, *others)).last_hidden_state
    pooled = states[:, 0] if method == "equicoherent" else states[:, int(trunk.config.use_class_token) :].mean(1)
    expected = torch.nn.functional.cosine_similarity(pooled[:1], pooled[1:])
    found = analyses.nearest_pictures(model, picture, others)
    assert [index for index, _ in found] == [int(i) for i in expected.argsort(descending=True) if i != 3]
    torch.testing.assert_close(torch.tensor([c for _, c in found]), expected[[i for i, _ in found]], atol=1e-5, rtol=0)
    patches = analyses.nearest_patches(model, picture, (2, 1), others)
    here = tokens_of(model, picture)[2, 1]
    scores = {i: torch.nn.functional.cosine_similarity(tokens_of(model, others[i]), here, dim=-1) for i in (0, 1, 2, 4)}
    assert [index for index, _, _ in patches] == sorted(scores, key=lambda i: -scores[i].max().item())
    for index, cell, cosine in patches:
        assert scores[index][cell].item() == pytest.approx(scores[index].max().item(), abs=1e-5)
        assert cosine == pytest.approx(scores[index].max().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("place", "cell"), [((0.0, 0.0), (0, 0)), ((0.99, 0.5), (1, 3)), ((1.0, 1.0), (2, 3)), ((-1.0, 7.0), (2, 0))]
)
def test_a_place_belongs_to_the_patch_under_it(place: tuple[float, float], cell: tuple[int, int]) -> None:
    assert analyses.cell_at(place, (3, 4)) == cell
