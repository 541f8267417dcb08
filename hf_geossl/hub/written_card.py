"""Cards that people have written or changed: how they differ from rendered ones, and are brought up to date."""

import hashlib
import re

import yaml
from huggingface_hub import ModelCard

_RESULTS = re.compile(r"<!-- results -->.*<!-- /results -->\n?", re.DOTALL)


def sign_card(card: str) -> str:
    """Adds the last line by which `is_rendered` knows a card that nobody has changed."""
    return f"{card}\n{_signature(card)}\n"


def _signature(card: str) -> str:
    return f"<!-- rendered by hf_geossl: {hashlib.sha256(card.encode()).hexdigest()[:16]} -->"


def is_rendered(card: str) -> bool:
    """Whether a card was rendered by this or an earlier version, and not changed by hand."""
    text, _, last = card.rstrip("\n").rpartition("\n")
    return last == _signature(text)


def parse_card(card: str) -> ModelCard:
    """Reads a card.

    Raises:
        ValueError: If its metadata is not YAML.
    """
    try:
        return ModelCard(card, ignore_metadata_errors=True)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the metadata at the top of README.md is not YAML ({reason}): mend it") from error


def license_of(card: str | None) -> str | None:
    """The licence in a card's metadata."""
    license = parse_card(card).data.get("license") if card else None
    return license if isinstance(license, str) else None


def update_card(card: str, rendered: str, folder_name: str, license: str | None = None) -> str:
    """Brings a card that was written by hand up to date: its text stays, what was measured is put in.

    Args:
        card (`str`): The card.
        rendered (`str`): What `render_card` makes of the same model now.
        folder_name (`str`): The name by which the card may load the model; that of `rendered` takes its place.
        license (`str`, *optional*): Takes the place of the card's.

    Returns:
        `str`: The card, with the metadata of `rendered` where it has none of its own, with its entries in `model-index`,
        and with its section of results (between the marks `<!-- results -->`) replaced or added at the end.

    Raises:
        ValueError: If the card's metadata is not YAML.
    """
    new_name = re.search(r'from_pretrained\("([^"\n]+)"', rendered)
    if new_name is not None:
        card = card.replace(f'from_pretrained("{folder_name}"', f'from_pretrained("{new_name[1]}"')
    written, made = parse_card(card), ModelCard(rendered)
    theirs, ours = written.data.get("eval_results") or [], made.data.get("eval_results") or []
    known = {(entry.unique_identifier, entry.metric_type, entry.metric_name) for entry in ours}
    merged = [e for e in theirs if (e.unique_identifier, e.metric_type, e.metric_name) not in known] + ours
    for key, value in made.data.__dict__.items():
        if written.data.get(key) is None:
            written.data[key] = value
    if merged:
        written.data["eval_results"] = merged
    if license is not None:
        written.data["license"] = license
    section = _RESULTS.search(rendered)
    text = str(written)
    if section is None:
        return text
    if _RESULTS.search(text):
        return _RESULTS.sub(lambda _: section[0], text)
    return f"{text.rstrip()}\n\n{section[0]}"
