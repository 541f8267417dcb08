"""Post-training on scenes from a trunk that knows their classes: with a warm-up its k-NN stays, without one it falls."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, set_seed

from hf_geossl import GTSATrainer, GTSATrainingArguments, GTSAViews, load_for_pretraining
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.protocols.knn import vote
from tests.helpers.supervised import rendered

pytestmark = pytest.mark.slow

IMAGES, STEPS, EVERY = 500, 200, 25
HEADS = {
    "projector_hidden_size": 64, "projection_size": 64, "predictor_hidden_size": 64, "rotation_hidden_sizes": (64, 32),
    "roi_output_sizes": (5, 2), "num_matches": (32, 8),
}  # fmt: skip


@torch.no_grad()
def knn(trunk: Any) -> float:
    """Accuracy in % of 20 neighbours among 500 scenes, on 500 others."""
    training = trunk.training
    encoder, features, labels = load_encoder(trunk.eval()), [], []
    for split in ("train", "test"):
        batch = next(rendered(split, 64, IMAGES, "scene").batches(IMAGES))
        features.append(trunk(encoder.normalize(batch["image"])).pooler_output.numpy())
        labels.append(batch["label"].numpy())
    trunk.train(training)
    votes = vote(features[1], features[0], labels[0], [20], int(labels[0].max()) + 1, 0.07)[20]
    return 100 * float((votes.argmax(axis=1) == labels[1]).mean())


class Curve(TrainerCallback):
    """k-NN of student and teacher every 25 steps; ends the run where the student's has fallen by far."""

    def __init__(self, model: Any) -> None:
        self.source, self.start = knn(model.gtsa), model.gtsa.layernorm.weight.detach().clone()
        self.student, self.teacher = list[float](), list[float]()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % EVERY:
            return
        for trunk, accuracies in ((model.gtsa, self.student), (model.teacher.gtsa, self.teacher)):
            frozen = torch.equal(trunk.layernorm.weight, self.start)
            accuracies.append(self.source if frozen else knn(trunk))
        control.should_training_stop |= self.student[-1] < self.source - 3.5


def post_train(source: Path, output_dir: Path, **fields: Any) -> Curve:
    """A short run of 200 steps."""
    set_seed(0)
    model = load_for_pretraining("gtsa", source, **HEADS)
    curve = Curve(model)
    args = GTSATrainingArguments(
        str(output_dir), max_steps=STEPS, per_device_train_batch_size=8, learning_rate=1e-3, warmup_steps=20, layer_decay=0.65,
        weight_decay_end=None, teacher_momentum=0.99, use_cpu=True, disable_tqdm=True, picture=False,
        save_strategy="no", probe_every_steps=0, **fields,
    )  # fmt: skip
    scenes = rendered("train", 64, IMAGES, "scene")
    images = [{"image": (255 * row["image"]).byte().permute(1, 2, 0).numpy()} for row in scenes]
    views = GTSAViews(global_size=64, local_size=32, num_local=2)
    trainer = GTSATrainer(model, args, images, views=views, callbacks=[curve])
    trainer.train()
    return curve


def test_a_warm_up_keeps_what_the_trunk_knows(supervised: Encoder, tmp_path: Path) -> None:
    """The same learning rates, images and heads, with and without a warm-up of the heads and a slow start of the trunk."""
    supervised.module.save_pretrained(tmp_path / "source")
    warm = post_train(tmp_path / "source", tmp_path / "warm", freeze_trunk_steps=0.5, trunk_warmup_steps=0.5)
    cold = post_train(tmp_path / "source", tmp_path / "cold")
    assert warm.source == cold.source > 30
    assert len(warm.student) == STEPS // EVERY
    assert min(warm.student + warm.teacher) >= warm.source - 2
    assert warm.student[-1] != warm.source  # it has moved
    assert min(cold.student) < cold.source - 2
