"""What the views of all methods share: settings as values, stacking to batches, and no wait for a device."""

import contextlib
import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch

from hf_geossl.methods import METHODS
from hf_geossl.views.base import Views, describe_crops, percent
from hf_geossl.views.gtsa import GTSACrops, GTSAViews
from hf_geossl.views.photometric import Normalization
from tests.helpers.photographs import photographs

SMALL = {"global_size": 32, "local_size": 16}
CLASSES = [method.load("views") for method in METHODS.values()]
# A value that is not the default, of every kind of setting; a test each of GTSA, LOCA and EquiCoherent has all settings.
OTHER = {"mean": (0.5, 0.4, 0.3), "hue": 0.11, "blur_sigma": (0.5, 2.0), "exact_resize": True, "num_intermediate": 5}


@pytest.fixture(scope="module")
def photo():
    return photographs()[2].resize((320, 240))


# -------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("cls", CLASSES)
def test_views_are_values(cls):
    views, other = cls(**OTHER), cls()
    assert views == cls(**OTHER)
    assert hash(views) == hash(cls(**OTHER))
    assert views != other
    assert pickle.loads(pickle.dumps(views)) == views
    assert cls(**{name: list(value) if isinstance(value, tuple) else value for name, value in OTHER.items()}) == views
    assert dataclasses.replace(other, **OTHER) == views
    assert dataclasses.replace(views, normalization=Normalization()) == dataclasses.replace(views, mean=other.mean)
    with pytest.raises(dataclasses.FrozenInstanceError):
        views.normalization = Normalization()
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = views.colour


@pytest.mark.parametrize("cls", CLASSES)
def test_the_dictionary_of_views_is_json_and_has_every_setting(cls):
    views = cls(**OTHER)
    settings = dataclasses.asdict(views)
    assert json.loads(json.dumps(settings)) == json.loads(
        json.dumps(dataclasses.asdict(pickle.loads(pickle.dumps(views))))
    )
    for name, entry in cls.flat_settings().items():
        owner, inner = entry.metadata["place"]
        value = settings[inner] if owner is None else settings[owner][inner]
        assert value == getattr(views, name)
        assert value == OTHER.get(name, getattr(cls(), name))
        assert entry.metadata["help"].endswith(".")


def test_a_group_and_its_flat_settings_make_the_same_views():
    whole = GTSAViews(crops=GTSACrops(global_size=64, num_local=3), normalization=Normalization(std=(1, 1, 1)))
    assert whole == GTSAViews(global_size=64, num_local=3, std=(1, 1, 1))
    assert GTSAViews(num_local=4, crops=GTSACrops(global_size=64)) == GTSAViews(64, num_local=4)
    assert (whole.mean, whole.std, whole.global_size) == (Normalization().mean, (1, 1, 1), 64)


@pytest.mark.parametrize("cls", CLASSES)
def test_wrong_settings_are_named_with_the_nearest_valid_one(cls):
    with pytest.raises(TypeError, match="Views has no setting 'aspect_ratios'; did you mean 'aspect_ratio'?"):
        cls(aspect_ratios=(1, 2))
    with pytest.raises(TypeError, match="exact_color is no setting any more: colours are always exact"):
        cls(exact_color=True)


def test_words_for_cards():
    assert percent(0.125) == "12.5%"
    assert describe_crops(96, (0.05, 1.0)) == "of 96 x 96 pixels from 5% to 100% of the image"


# --------------------------------------------------------------------------------------------------------- batches


def test_collate_names_samples_that_do_not_fit(photo):
    views = GTSAViews(**SMALL)
    with pytest.raises(ValueError, match="at least one"):
        views.collate([])
    with pytest.raises(ValueError, match="sample 1 has"):
        views.collate([views(photo, 0), {"crop_boxes": torch.zeros(1, 4)}])


class SeededPhotos(torch.utils.data.Dataset):
    def __init__(self, photo):
        self.pixels, self.views = np.array(photo), GTSAViews(**SMALL)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.views(self.pixels, index)


def test_batches_do_not_depend_on_the_number_of_workers(photo):
    loaders = [
        torch.utils.data.DataLoader(
            SeededPhotos(photo), batch_size=3, num_workers=workers, collate_fn=GTSAViews.collate
        )
        for workers in (0, 2)
    ]
    for alone, shared in zip(*loaders, strict=True):
        assert alone.keys() == shared.keys()
        assert all(torch.equal(alone[key], shared[key]) for key in alone)


@pytest.mark.parametrize("cls", CLASSES)
def test_collate_leaves_crops_in_channels_last_memory(cls, photo):
    samples = [cls()(photo, seed) for seed in range(3)]
    batch = cls.collate(samples)
    for name, stacked in batch.items():
        assert torch.equal(stacked, torch.stack([sample[name] for sample in samples]))
        if name.endswith(("crop", "crops")):
            assert stacked.movedim(-3, -1).is_contiguous()


@pytest.mark.parametrize("cls", CLASSES)
def test_calling_views_is_views_and_pixels_are_accepted(cls, photo):
    views: Views = cls()
    assert views.accepts_pixels
    pixels = torch.from_numpy(np.array(photo))
    for first, second in zip(views(photo, 3).values(), views.views(pixels, 3).values(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("cls", CLASSES)
def test_no_value_of_the_batch_is_waited_for(cls, photo, monkeypatch):
    # Tensors on "meta" refuse to meet those of a CPU, and to tell their values.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    views = cls()
    batch = {name: value.to("meta") for name, value in views.collate([views(photo, seed) for seed in range(4)]).items()}
    for out in (views.augment(batch, torch.Generator().manual_seed(0)), views.normalize(batch)):
        assert {value.device.type for value in out.values() if value is not None} == {"meta"}
