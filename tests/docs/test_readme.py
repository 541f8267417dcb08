"""What the README shows in Python runs as it stands, on a CPU."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from tests.helpers.golden import ROOT
from tests.helpers.photographs import write_folder

FEWER = {
    "max_steps=20_000, per_device_train_batch_size=64": "max_steps=2, per_device_train_batch_size=2, picture=False",
    "GTSAConfig()": "GTSAConfig(hidden_size=48, num_hidden_layers=3, num_attention_heads=3)",
}


def test_the_block_that_pretrains_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (block,) = [text for text in blocks if "GTSATrainer" in text]
    for words, small in FEWER.items():
        assert block.count(words) == 1
        block = block.replace(words, small)
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "path" / "to" / "images", 4)
    exec(block, {})
    model = AutoModel.from_pretrained(tmp_path / "run")
    assert model(torch.zeros(1, 3, 224, 224)).last_hidden_state.shape == (1, 197, 48)
