"""What a card says of a method is read from its row, and adapted where the row says so."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from hf_geossl import methods
from hf_geossl.hub.method_card import Paper, method_card
from tests.helpers.methods import METHODS


def test_a_citation_is_bibtex_with_the_year_of_the_number() -> None:
    paper = Paper("iBOT", "2111.07832", "Image BERT", "Zhou, Jinghao and others")
    assert paper.citation == (
        "@article{ibot2021,\n  title={Image BERT},\n  author={Zhou, Jinghao and others},\n"
        "  journal={arXiv preprint arXiv:2111.07832},\n  year={2021}\n}"
    )


@pytest.mark.parametrize("name", METHODS)
def test_words_are_those_of_the_row(name: str) -> None:
    row, card = methods.METHODS[name], method_card(METHODS[name].config())
    assert (card.paper.name, card.paper.arxiv, card.paper.title) == (row.title, row.arxiv, row.paper_title)
    assert card.about == row.summary
    assert card.pooled == row.pooled
    assert set(row.trained_fields) <= set(card.fields)
    assert all(hasattr(METHODS[name].config(), field) for field in card.fields)


def test_a_method_without_words_of_its_own_has_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(methods.METHODS["gtsa"], name="fourth", title="Fourth", card="", summary="A fourth method.")
    monkeypatch.setitem(methods.METHODS, "fourth", row)
    card = method_card(SimpleNamespace(model_type="fourth"))  # type: ignore[arg-type]
    assert (card.paper.name, card.about, card.tags, card.teacher) == ("Fourth", "A fourth method.", (), True)
    assert len(card.citations) == 1
