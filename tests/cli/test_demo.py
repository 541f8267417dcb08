"""`geossl demo`: what is passed to the page."""

from pathlib import Path

import pytest

import hf_geossl.demo
from hf_geossl.cli.main import main


def test_folder_host_port_and_samples_reach_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def launch(folder: str, *, host: str, port: int | None, samples: str | None) -> None:
        calls.append((folder, host, port, samples))

    monkeypatch.setattr(hf_geossl.demo, "launch_demo", launch)
    assert main(["demo", str(tmp_path)]) == 0
    assert main(["demo", str(tmp_path), "--host", "0.0.0.0", "--port", "7861", "--samples", "own"]) == 0
    assert calls == [(str(tmp_path), "127.0.0.1", None, None), (str(tmp_path), "0.0.0.0", 7861, "own")]
