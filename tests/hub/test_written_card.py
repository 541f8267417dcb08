"""Cards changed by hand are told from rendered ones, and keep their text."""

import pytest

from hf_geossl.hub.written_card import is_rendered, license_of, parse_card, sign_card, update_card

RENDERED = (
    "---\nlicense: mit\ntags:\n- vit\n---\n# M\n\n" + 'from_pretrained("user/m")\n\n'
    "<!-- results -->\n| knn | 0.5 |\n<!-- /results -->\n"
)


def test_a_signature_fails_with_any_change() -> None:
    card = sign_card(RENDERED)
    assert is_rendered(card)
    assert is_rendered(card + "\n\n")
    assert not is_rendered(card.replace("0.5", "0.6"))
    assert not is_rendered(RENDERED)


def test_text_and_metadata_stay_and_results_are_replaced() -> None:
    mine = '---\ntags:\n- mine\n---\n# Mine\nfrom_pretrained("m")\n<!-- results -->old<!-- /results -->\nend\n'
    updated = update_card(mine, RENDERED, "m")
    assert parse_card(updated).data.tags == ["mine"]
    assert license_of(updated) == "mit"
    assert '# Mine\nfrom_pretrained("user/m")' in updated
    assert "| knn | 0.5 |" in updated
    assert "old" not in updated
    assert updated.rstrip().endswith("end")
    assert license_of(update_card(mine, RENDERED, "m", "cc0-1.0")) == "cc0-1.0"
    assert update_card("# Mine", RENDERED, "m").rstrip().endswith("<!-- /results -->")


def test_metadata_that_is_not_yaml_is_said() -> None:
    with pytest.raises(ValueError, match="the metadata at the top of README.md is not YAML"):
        parse_card("---\na: [1\n---\n")
    assert license_of(None) is None
