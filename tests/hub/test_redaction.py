"""What may leave the machine: no token, no place on it, no markup."""

import html

import pytest

from hf_geossl.hub.redaction import as_code, escape_markdown, find_secret, redact, redact_values

SECRETS = [
    "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
    "ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "github_pat_11ABCDEFG0abcdefghijkl_mnop",
    "sk-proj-abcdefghijklmnop1234",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc",
    "Bearer abcdef123456",
    "WANDB_API_KEY=0123456789abcdef",
    "password: hunter2hunter2",
    "--hub_token s3cr3t",
    "0123456789abcdef0123456789abcdef01234567",
    "Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4MTIzQUJD",
]
PLACES = [
    "/home/alice/photos",
    "/data",
    "~/photos",
    "~alice/photos",
    "../other/run",
    "./run",
    r"C:\Users\alice\photos",
    "C:/Users/alice",
    r"\\server\share\x",
    "file:///srv/x",
]
ORDINARY = [
    "detection-datasets/coco",
    "shards/*.tar",
    "hf_geossl 0.1.0",
    "16/32",
    "width / height from 0.75 to 1.33",
    "num_kept_query_tokens 23",
    "teacher_temperature 0.04",
    "class token first, then the registers",
    "s3://bucket/photos",
    "https://huggingface.co/datasets/x/y",
    "a 32 x 32 view, mirrored in 50%",
    "torch 2.15.0+cu130",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", ["{}", "see {} there", "key='{}'", "--name={} --seed 3", '{{"a": "{}"}}'])
def test_tokens_are_removed_wherever_they_stand(secret: str, around: str) -> None:
    found = redact(around.format(secret))
    value = secret.removeprefix("Bearer ").rpartition("=")[2].rpartition(" ")[2]
    assert value not in found
    assert "(removed)" in found


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("around", ["{}", "read from {}", "--dataset {} --seed 3", "--dataset={}", "('{}')", "a:{}"])
def test_places_on_the_machine_are_removed(place: str, around: str) -> None:
    found = redact(around.format(place))
    assert place not in found
    assert "alice" not in found
    assert found.count("(local path)") == 1
    assert found.endswith("--seed 3") == around.endswith("--seed 3")


def test_places_with_spaces_are_removed_where_quotes_or_the_value_tell_their_end() -> None:
    assert redact("--dataset '/home/alice/my photos' --seed 3") == "--dataset (local path) --seed 3"
    assert redact_values({"dataset": "/home/alice/my photos", "n": [1, "~/x y", None], "f": 0.5}) == {
        "dataset": "(local path)",
        "n": [1, "(local path)", None],
        "f": 0.5,
    }


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_texts_stay(text: str) -> None:
    assert redact(text) == text
    assert find_secret(text) is None


def test_markup_is_shown_and_not_obeyed() -> None:
    text = "<script>alert(1)</script> ![x](http://evil.example/a.png) | `code` **bold** \\ &amp;\nnext"
    plain = escape_markdown(text)
    for character in "<>|`*[]\\\n":
        assert character not in plain
    assert "://" not in plain
    assert html.unescape(plain) == " ".join(text.split())
    assert escape_markdown(0.5) == "0.5"
    assert escape_markdown(None) == "None"
    assert escape_markdown("[32, 8]") == "&#91;32, 8&#93;"
    for character in "<>`\n":
        assert character not in as_code("a ```\n<b>`")


def test_a_known_token_is_found_in_a_written_text() -> None:
    assert find_secret("fine\nstill fine\nhf_AbCdEfGhIjKlMnOp\n") == 3
    assert find_secret("https://alice:pass@host/x") == 1
    assert find_secret("revision 0123456789abcdef0123456789abcdef01234567") is None  # a commit, perhaps
