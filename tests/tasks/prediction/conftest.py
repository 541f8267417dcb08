"""Folders of tiny models that the tests of predictions share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.task_folders import task_folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = task_folder(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder
