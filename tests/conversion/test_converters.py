"""Each source of checkpoints has its converter, which is imported no earlier than it is used."""

import subprocess
import sys
from importlib import import_module

import pytest

from hf_geossl import conversion
from tests.helpers.golden import ROOT


def test_sources_are_the_methods_with_published_checkpoints_and_two_peers() -> None:
    assert set(conversion.CONVERTERS) == {"gtsa", "loca", "dino", "timm"}


def test_every_converter_is_a_public_name_of_the_room() -> None:
    for source, reference in conversion.CONVERTERS.items():
        module, _, name = reference.partition(":")
        assert name == f"convert_{source}_checkpoint"
        assert getattr(conversion, name) is getattr(import_module(module), name)
    assert conversion.to_timm.__module__ == "hf_geossl.conversion.timm"
    with pytest.raises(AttributeError, match="hf_geossl.conversion.*no attribute 'convert_other_checkpoint'"):
        conversion.convert_other_checkpoint  # type: ignore[attr-defined]  # noqa: B018


def test_the_list_of_sources_is_read_without_torch() -> None:
    code = "import sys; from hf_geossl.conversion import CONVERTERS; print(sorted(CONVERTERS), 'torch' in sys.modules)"
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['dino', 'gtsa', 'loca', 'timm'] False"
