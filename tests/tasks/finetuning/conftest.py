"""A trunk and labelled photographs, small ones, for the tests of fine-tuning."""

from pathlib import Path

import pytest
import torch

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.tasks.finetuning.arguments import FineTuningArguments
from hf_geossl.tasks.finetuning.finetune import FineTuning, prepare_finetuning
from hf_geossl.tasks.finetuning.settings import HeadSettings
from hf_geossl.tasks.finetuning.splits import LabelledDataset
from tests.helpers.labelled_photographs import write_labelled_photographs


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled_photographs(tmp_path_factory.mktemp("labelled") / "photographs")


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers, 16 wide, images of 32 pixels in patches of 8."""
    folder = tmp_path_factory.mktemp("trunk") / "trunk"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GTSAConfig(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8, init_from=None
        )
        GTSAModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def make(trunk: Path, photographs: Path, tmp_path: Path):
    """Prepares a fine-tuning of 4 steps of 4 images; keywords are those of the arguments and of the head."""

    def prepare(
        task: str, folder: str = "out", data: LabelledDataset | None = None, model: Path = trunk, **given: object
    ) -> FineTuning:
        head = {name: given.pop(name) for name in list(given) if name in HeadSettings.__dataclass_fields__}
        defaults = {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "disable_tqdm": True,
            "eval_steps": 2,
        }
        defaults |= {"save_steps": 4}
        args = FineTuningArguments(str(tmp_path / folder), **{**defaults, **given})  # type: ignore[arg-type]
        data = data or LabelledDataset(str(photographs))
        with torch.random.fork_rng(devices=[]):
            return prepare_finetuning(model, data, task, args, HeadSettings(**head))  # type: ignore[arg-type]

    return prepare
