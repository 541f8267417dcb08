"""One pass over a stream in batches, divided among processes."""

import itertools

import numpy as np
import pytest
import torch

from hf_geossl.data.batches import StreamBatches, decode_for
from hf_geossl.data.evaluation_batches import EvaluationBatches, FirstImages
from hf_geossl.data.streams import ImageStream, load_stream
from hf_geossl.modeling.image_format import ImageFormat
from tests.helpers.images import write_folder, write_one_parquet, write_tar


class Seeds:
    """Views that record nothing of an image but its seed."""

    def __call__(self, image, *, seed):
        return {"seed": torch.tensor(seed)}

    def collate(self, samples):
        return {"seed": torch.stack([sample["seed"] for sample in samples])}


@pytest.fixture
def stream(tmp_path) -> ImageStream:
    return load_stream(str(write_folder(tmp_path / "photos", 11)))


def seeds(batches: EvaluationBatches) -> list[list[int]]:
    return [batch["seed"].tolist() for batch in batches]


def test_a_pass_gives_every_image_once_in_the_streams_order(stream):
    expected = [sample["seed"] for sample in stream.one_epoch()]
    batches = EvaluationBatches(stream, Seeds(), 4)
    got = seeds(batches)
    assert [len(batch) for batch in got] == [4, 4, 3]
    assert list(itertools.chain(*got)) == expected
    assert batches.images == 11
    assert [batch["evaluation_batch"] for batch in batches] == [0, 1, 2]
    assert batches.images == 11  # of this pass
    assert seeds(batches) == got


def test_processes_share_a_pass_and_have_as_many_batches_each(stream):
    expected = [sample["seed"] for sample in stream.one_epoch()]
    parts = [seeds(EvaluationBatches(stream, Seeds(), 3, rank, 2)) for rank in range(2)]
    assert [list(map(len, part)) for part in parts] == [[3, 3], [3, 2]]
    assert parts[0] == [expected[0:6:2], expected[6::2]]
    assert parts[1] == [expected[1:6:2], expected[7::2]]
    # of a last group of one image both take that one
    few = [seeds(EvaluationBatches(FirstImages(stream, 7), Seeds(), 3, rank, 2)) for rank in range(2)]
    assert few[0][1] == few[1][1] == [expected[6]]


def test_drop_last_leaves_out_what_does_not_fill_a_batch_of_all_processes(stream):
    assert list(map(len, seeds(EvaluationBatches(stream, Seeds(), 2, 1, 2, drop_last=True)))) == [2, 2]
    message = (
        r"eval_dataset must hold at least a whole batch of 16 images .8 on each of 2 processes., which are compared "
        r"with each other, got 11; give more images .--eval_images. or a smaller per_device_eval_batch_size"
    )
    batches = EvaluationBatches(stream, Seeds(), 8, 0, 2, drop_last=True)
    for call in (batches.check_size, lambda: next(iter(batches))):
        with pytest.raises(ValueError, match=message):
            call()
    EvaluationBatches(stream, Seeds(), 8, 0, 2).check_size()
    EvaluationBatches(stream, Seeds(), 11, drop_last=True).check_size()


def test_the_number_of_images_is_known_of_folders_and_tables(stream, tmp_path):
    assert stream.num_images == 11
    assert load_stream(str(write_one_parquet(tmp_path / "a.parquet", 5))).num_images == 5
    tar = load_stream(str(write_tar(tmp_path / "a.tar", 5)))
    assert tar.num_images is None
    assert FirstImages(tar, 3).num_images == 3  # as far as is known
    assert FirstImages(stream, 100).num_images == 11


def test_the_first_images_are_those_of_the_pass(stream):
    first = FirstImages(stream, 4)
    keys = [sample["key"] for sample in first.one_epoch()]
    assert keys == [sample["key"] for sample in itertools.islice(stream.one_epoch(), 4)]
    assert first.fingerprint == stream.fingerprint
    assert first.source is stream.source
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        FirstImages(stream, 0)


class Pixels:
    """Views whose crops are the pixels that they get."""

    accepts_pixels = True
    image_format = ImageFormat(
        (4, 1), ("infrared", "red"), "uint16", ((0.0, 4095.0),), "bits:12", mean=(0.5, 0.5), std=(0.2, 0.2)
    )

    def __call__(self, image, *, seed):
        return {"pixels": image}

    def collate(self, samples):
        return {"pixels": torch.stack([sample["pixels"] for sample in samples])}


def test_images_are_decoded_as_the_format_of_the_views_says(tmp_path):
    stored = np.random.default_rng(0).integers(0, 5000, (6, 8, 7, 4), dtype=np.uint16)
    for index, image in enumerate(stored):
        np.save(tmp_path / f"{index}.npy", image)
    stream = load_stream(tmp_path)
    expected = {float(image[0, 0, 3]) / 4095 for image in stored}
    training = next(iter(StreamBatches(stream, Pixels(), 6).loader()))["pixels"]
    for pixels in (
        training,
        next(iter(EvaluationBatches(stream, Pixels(), 6)))["pixels"],
        next(iter(EvaluationBatches(FirstImages(stream, 6), Pixels(), 6)))["pixels"],
    ):
        assert (pixels.shape, pixels.dtype) == ((6, 8, 7, 2), torch.float32)
        assert sorted(pixels[:, 0, 0, 0].tolist()) == pytest.approx(sorted(expected))
    assert training.max() > 1  # nothing is clipped
    assert decode_for(Seeds()) is None
