"""The version stands once: packaging, package and command read it there."""

import subprocess
import sys

from packaging.version import Version

import hf_geossl
from hf_geossl.version import __version__
from tests.helpers.golden import ROOT


def test_package_and_packaging_have_one_version() -> None:
    packed = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert packed.stdout.split()[-1] == hf_geossl.__version__ == __version__
    assert str(Version(__version__)) == __version__  # as pip writes it


def test_the_command_prints_it() -> None:
    command = [sys.executable, "-m", "hf_geossl.cli", "--version"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.split()[-1] == __version__
