"""The command line reads the settings without torch."""

import subprocess
import sys

from hf_geossl.tasks.finetuning.kinds import KINDS
from hf_geossl.tasks.finetuning.settings import DECODERS, TASKS


def test_settings_are_there_without_torch() -> None:
    code = (
        "import sys, hf_geossl.tasks.finetuning.settings; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["False", "False"]


def test_every_task_has_a_kind_and_decoders() -> None:
    assert TASKS == tuple(KINDS) == tuple(DECODERS)
