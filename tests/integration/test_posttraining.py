"""Post-training on scenes from a trunk that knows them: with a warm-up its k-NN stays, without one it falls."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, set_seed

from hf_geossl import GTSATrainer, GTSATrainingArguments, GTSAViews, load_for_pretraining
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.protocols.knn import vote
from tests.helpers.supervised import rendered

pytestmark = pytest.mark.slow

SIZE, IMAGES, STEPS, EVERY = 48, 500, 100, 25
HEADS = {
    "projector_hidden_size": 64, "projection_size": 64, "predictor_hidden_size": 64, "rotation_hidden_sizes": (64, 32),
    "roi_output_sizes": (4, 2), "num_matches": (18, 4),
}  # fmt: skip


def images() -> list[dict[str, Any]]:
    """Scenes to train on."""
    rows = rendered("train", SIZE, IMAGES, "scene")
    return [{"image": (255 * row["image"]).byte().permute(1, 2, 0).numpy()} for row in rows]


@torch.no_grad()
def knn(trunk: Any) -> float:
    """Accuracy in % of 20 neighbours among 500 scenes, on 500 others, by the mean patch token."""
    training = trunk.training
    encoder, features, labels = load_encoder(trunk.eval()), [], []
    for split in ("validation", "test"):
        batch = next(rendered(split, SIZE, IMAGES, "scene").batches(IMAGES))
        tokens = trunk.patch_tokens(trunk(encoder.normalize(batch["image"])))
        features.append(tokens.mean(dim=1).numpy())
        labels.append(batch["label"].numpy())
    trunk.train(training)
    votes = vote(features[1], features[0], labels[0], [20], int(labels[0].max()) + 1, 0.07)[20]
    return 100 * float((votes.argmax(axis=1) == labels[1]).mean())


@pytest.fixture
def source(supervised: Any, tmp_path: Path) -> Path:
    """A trunk that was trained with labels: one that knows much, and is there for other tests as well."""
    supervised.module.save_pretrained(tmp_path / "trunk")
    return tmp_path / "trunk"


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
        control.should_training_stop |= self.student[-1] < self.source - 3


def post_train(source: Path, output_dir: Path, **fields: Any) -> Curve:
    """A short run of 100 steps."""
    set_seed(0)
    model = load_for_pretraining("gtsa", source, **HEADS)
    curve = Curve(model)
    args = GTSATrainingArguments(
        str(output_dir), max_steps=STEPS, per_device_train_batch_size=16, learning_rate=2e-3, warmup_steps=0,
        weight_decay_end=None, teacher_momentum=0.98, use_cpu=True, disable_tqdm=True, picture=False,
        save_strategy="no", probe_every_steps=0, **fields,
    )  # fmt: skip
    views = GTSAViews(global_size=SIZE, local_size=SIZE // 2, num_local=2)
    trainer = GTSATrainer(model, args, images(), views=views, callbacks=[curve])
    trainer.train()
    return curve


def test_a_warm_up_keeps_what_the_trunk_knows(source: Path, tmp_path: Path) -> None:
    """The same learning rate, images and heads, with and without what `gtsa_posttrain` does for a trunk."""
    warm = post_train(source, tmp_path / "warm", freeze_trunk_steps=0.5, trunk_warmup_steps=0.5, layer_decay=0.65)
    cold = post_train(source, tmp_path / "cold")
    print(f"source {warm.source}, warm {warm.student} {warm.teacher}, cold {cold.student} {cold.teacher}")
    assert warm.source == cold.source
    assert len(warm.student) == STEPS // EVERY
    assert min(warm.student + warm.teacher) >= warm.source - 2
    assert warm.student[-1] != warm.source  # it has moved
    assert min(cold.student) < cold.source - 2
