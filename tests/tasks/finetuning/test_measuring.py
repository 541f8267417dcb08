"""Measuring: every image once, whatever the batch, and the model left as it was."""

from pathlib import Path

import torch

from hf_geossl.tasks.finetuning.examples import Collator
from hf_geossl.tasks.finetuning.kinds import find_task
from hf_geossl.tasks.finetuning.measuring import as_result, measure
from hf_geossl.tasks.finetuning.models import Start
from hf_geossl.tasks.finetuning.settings import HeadSettings
from hf_geossl.tasks.finetuning.splits import LabelledDataset


def test_every_image_counts_once_whatever_the_batch(trunk: Path, photographs: Path) -> None:
    task = find_task("classification")
    torch.manual_seed(3)
    model = Start.open(trunk).build(task, ["disc", "square", "triangle"], HeadSettings()).train()
    train, test = LabelledDataset(str(photographs)).open("label", (32, 32), None)
    collate = Collator([0.5] * 3, [0.25] * 3, task.labels)
    one, four = (measure(model, task, train, collate, size, with_loss=True) for size in (1, 5))
    assert len(one.rows) == len(four.rows) == 12
    assert one.numbers == four.numbers
    assert abs(one.loss - four.loss) < 1e-5
    assert model.training
    with torch.no_grad():
        logits = model.eval()(collate.pixel_values([train[place] for place in range(12)])).logits
    labels = task.labels([train[place] for place in range(12)])
    assert one.numbers["accuracy"] == (logits.argmax(dim=1) == labels).double().mean().item()
    torch.testing.assert_close(torch.tensor(one.loss), torch.nn.functional.cross_entropy(logits, labels))
    result = as_result(task, one, test, ["disc", "square", "triangle"], {}, torch.device("cpu"))
    low, high = result["intervals"]["accuracy"]
    assert low <= result["accuracy"] <= high
    assert result["details"]["accuracy_per_class"].keys() == {"disc", "square", "triangle"}
