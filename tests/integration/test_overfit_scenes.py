"""EquiCoherent on 256 scenes: reconstructions, the order of the decoders, and a host that stays alive."""

import itertools

import pytest
import torch
from transformers import set_seed

from hf_geossl import (
    EquiCoherentConfig,
    EquiCoherentForPreTraining,
    EquiCoherentTrainer,
    EquiCoherentTrainingArguments,
    EquiCoherentViews,
    load_stream,
)

pytestmark = pytest.mark.slow

CONFIG = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 4,
    "patch_features": 256,
    "head_hidden_size": 256,
    "head_bottleneck_size": 64,
    "num_prototypes": 128,
    "decoder_hidden_size": 64,
    "drop_path_rate": 0.0,
    "teacher_temperature": 0.025,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> EquiCoherentTrainer:
    scenes = load_stream("scenes", config_name="scene-64").one_epoch()
    images = [{"image": sample["image"]} for sample in itertools.islice(scenes, 256)]
    set_seed(0)
    config = EquiCoherentConfig(**CONFIG)
    args = EquiCoherentTrainingArguments(
        str(tmp_path_factory.mktemp("overfit")),
        max_steps=180,
        per_device_train_batch_size=16,
        base_learning_rate=1e-2,
        warmup_steps=0.05,
        adam_beta2=0.95,
        teacher_momentum=0.99,
        teacher_temperature_start=0.025,
        logging_steps=25,
        save_strategy="no",
        probe_every_steps=0,
        use_cpu=True,
        disable_tqdm=True,
        picture=False,
    )
    plain = {"color_jitter_probability": 0.0, "grayscale_probability": 0.0, "solarize_probability": 0.0}
    plain |= {"blur_probability": (0.0, 0.0, 0.0), "flip_probability": 0.0}
    whole = {"global_scale": (1.0, 1.0), "aspect_ratio": (1.0, 1.0)}
    views = EquiCoherentViews(patch_size=4, global_size=32, local_size=16, num_local=2, **plain, **whole)
    trainer = EquiCoherentTrainer(EquiCoherentForPreTraining(config), args, images, views=views)
    trainer.train()
    return trainer


def _falls(diversities: list[float]) -> bool:
    """Whether the last third of a run is below the third before, by more than noise; the first third may dip."""
    third = len(diversities) // 3
    before, last = diversities[-2 * third : -third], diversities[-third:]
    return sum(last) / third < sum(before) / third - 0.02


@pytest.mark.parametrize(
    ("diversities", "falls"),
    [
        ([1.6, 1.5, 1.4, 1.3, 1.2, 1.1], True),
        ([1.60, 1.58, 1.56, 1.54, 1.52, 1.50], True),
        ([0.9, 1.3, 1.6, 1.6, 1.2, 0.8], True),
        ([1.6, 1.6, 1.6, 1.6, 1.6, 0.6], True),
        ([0.9, 0.7, 0.6, 0.7, 0.8, 0.9], False),
        ([0.91, 0.80, 0.57, 0.62, 0.70, 0.75, 0.80, 0.84, 0.86, 0.87], False),
        ([1.2, 1.4, 1.6, 1.65, 1.65, 1.64], False),
    ],
)
def test_a_falling_diversity_is_told_from_an_early_dip(diversities: list[float], falls: bool) -> None:
    assert _falls(diversities) == falls


def test_reconstructions_are_twice_as_good_as_the_mean_image(trained: EquiCoherentTrainer) -> None:
    last = [entry for entry in trained.state.log_history if "reconstruction_loss" in entry][-1]
    assert last["reconstruction_loss"] < 0.5 * last["mean_image_loss"]


def test_the_host_stays_alive(trained: EquiCoherentTrainer) -> None:
    """spec/scenes.md, section 4: above half a nat and not falling, and the teacher not within .1 of ln K."""
    logged = [entry for entry in trained.state.log_history if "prediction_diversity" in entry]
    diversities = [entry["prediction_diversity"] for entry in logged]
    assert diversities[-1] > 0.5
    assert not _falls(diversities)
    assert logged[-1]["teacher_entropy"] < torch.tensor(128.0).log() - 0.1


def test_each_decoder_is_nearer_to_its_own_image_than_to_the_others(trained: EquiCoherentTrainer) -> None:
    batches = itertools.islice(trained.get_eval_dataloader(trained.train_dataset), 16)
    model, errors = trained.model.eval(), []
    for number, batch in enumerate(batches):
        batch.pop("evaluation_batch")
        inputs = trained.views.augment(batch, torch.Generator().manual_seed(number))
        targets = inputs["intermediate_pixel_values"]
        with torch.no_grad():
            found = model(**inputs).reconstructions
        # (batch, decoder, target)
        errors.append((found[:, :, None] - targets[:, None]).square().mean(dim=(-3, -2, -1)))
    (first, first_other), (second_other, second) = torch.cat(errors).mean(dim=0).tolist()
    assert first < first_other
    assert second < second_other
