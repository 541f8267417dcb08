"""`geossl publish`: what it lists."""

from hf_geossl.cli.publish import describe_publication
from hf_geossl.hub.push import Publication, PublishedFile


def test_the_list_of_a_publication() -> None:
    files = (
        PublishedFile("model.safetensors", 2_340_000, "new"),
        PublishedFile("config.json", 1200, "changed"),
        PublishedFile("README.md", 100, "unchanged"),
    )
    publication = Publication(
        repo_id="user/name", kind="model", files=files, commit="0123456789abcdef", url="https://hub/user/name"
    )
    assert describe_publication(publication).splitlines() == [
        "  new           2.3 MB  model.safetensors",
        "  changed       1.2 kB  config.json",
        "  unchanged     0.1 kB  README.md",
        "model user/name: 2 of 3 files sent, 2.3 MB, revision 0123456789",
        "  https://hub/user/name",
    ]


def test_one_file_is_one_file_and_a_dry_run_has_sent_nothing() -> None:
    publication = Publication(
        repo_id="user/name",
        kind="model",
        files=(PublishedFile("config.json", 1200, "new"),),
        commit=None,
        url="https://hub/user/name",
    )
    assert "model user/name: 1 of 1 file would be sent, 1.2 kB" in describe_publication(publication).splitlines()
