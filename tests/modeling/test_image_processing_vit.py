"""The image processor of other channels: any image in, the model's normalised units out, from any folder that Auto opens."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import (
    AutoImageProcessor,
    DPTImageProcessor,
    SegformerImageProcessor,
    ViTImageProcessor,
    YolosImageProcessor,
    pipeline,
)

from hf_geossl import GTSAConfig, GTSAForSemanticSegmentation, GTSAModel
from hf_geossl.data.images import decode_pixels
from hf_geossl.hub.export import make_image_processor
from hf_geossl.hub.model_folder import model_files
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.modeling.image_processing_vit import GeometricImageProcessor
from tests.helpers.image_files import photo, values

BANDS = ImageFormat(
    channels=(4, 3, 2, 6),
    names=("red", "green", "blue", "infrared"),
    dtype="uint16",
    value_range=((0, 4095), (0, 4095), (0, 4095), (100, 8000)),
    range_source="given",
    mean=(0.1, 0.2, 0.3, 0.4),
    std=(0.5, 0.6, 0.7, 0.8),
)
GRAY = ImageFormat(channels="gray", names=("gray",), mean=(0.5,), std=(0.25,))
RGB16 = ImageFormat(dtype="uint16", value_range=((0, 65535),))


def expected(stored: np.ndarray, described: ImageFormat) -> np.ndarray:
    """Normalised units of `(height, width, channels)` of the model, by the definition."""
    low, high = np.array(described.ranges()).T
    return ((stored - low) / (high - low) - np.array(described.mean)) / np.array(described.std)


@pytest.mark.parametrize("given", ["all", "model's"])
@pytest.mark.parametrize("kind", ["array", "array first", "tensor", "list", "batch", "batch first"])
def test_arrays_and_tensors_of_all_or_the_models_channels(given: str, kind: str) -> None:
    stored = values(24, 40, 6, dtype=np.uint16)
    chosen = stored[..., [3, 2, 1, 5]]
    image = stored if given == "all" else chosen
    first = np.ascontiguousarray(np.moveaxis(image, 2, 0))
    images: Any = {
        "array": image,
        "array first": first,
        "tensor": torch.from_numpy(first),
        "list": [image, first],
        "batch": np.stack([image, image]),
        "batch first": torch.from_numpy(np.stack([first, first])),
    }[kind]
    processor = GeometricImageProcessor(BANDS.to_dict(), do_resize=False)
    made = processor(images, return_tensors="pt")["pixel_values"]
    assert made.shape == (1 if kind in ("array", "array first", "tensor") else 2, 4, 24, 40)
    for one in made:
        np.testing.assert_allclose(one.permute(1, 2, 0), expected(chosen, BANDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("described", [GRAY, RGB16, ImageFormat(channels=(1,), names=("a",), mean=(0,), std=(1,))])
def test_pil_images_of_every_mode(mode: str, described: ImageFormat) -> None:
    grey = photo()[..., 0]
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode in ("I", "F"):
        image = Image.fromarray(grey.astype(np.int32 if mode == "I" else np.float32))
    else:
        image = Image.fromarray(photo()).convert(mode)
    made = GeometricImageProcessor(described.to_dict(), size=32)(image, return_tensors="np")["pixel_values"]
    assert made.shape == (1, described.num_channels, 32, 32)
    assert made.dtype == np.float32


@pytest.mark.parametrize("described", [GRAY, RGB16])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16"])
def test_a_picture_gives_what_decoding_gave_in_training(described: ImageFormat, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(photo()[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(photo()).convert(mode)
    if described is RGB16 and mode != "I;16":
        pytest.skip("of another type than the model's: decoding scales by the type, the processor takes what is stored")
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(photo()[..., 1]))
    processor = GeometricImageProcessor(described.to_dict(), do_resize=False, do_normalize=False)
    made = processor(image, return_tensors="pt")["pixel_values"][0].permute(1, 2, 0)
    decoded = decode_pixels(image, image_format=described)
    units = decoded / 255 if decoded.dtype == torch.uint8 else decoded
    assert (made - units).abs().max() <= 1.001 / 255  # the last bit of laying over white may round otherwise


@pytest.mark.parametrize("stored", ["uint8", "uint16", "float32", "bool"])
@pytest.mark.parametrize("described", ["uint8", "uint16", "float32", "12 bits"])
def test_images_of_another_type_are_scaled_as_decoding_does_it(described: str, stored: str, tmp_path: Path) -> None:
    """A model of 16 bits or floats gets a picture of 8 bits, and the reverse: neither black nor far above 1."""
    dtype, bits = ("uint16", 12) if described == "12 bits" else (described, {"uint8": 8, "uint16": 16}.get(described))
    takes = ImageFormat(
        channels="gray",
        names=("gray",),
        dtype=dtype,
        value_range=((0, 2**bits - 1 if bits else 1),),
        range_source="bits:12" if bits == 12 else "type",
        mean=(0.0,),
        std=(1.0,),
    )
    levels = np.arange(12).reshape(3, 4) / 12
    made = (levels > 0.5) if stored == "bool" else levels * (np.iinfo(stored).max if stored.startswith("u") else 1)
    np.save(tmp_path / "image.npy", made.astype(stored))
    decoded = decode_pixels(tmp_path / "image.npy", image_format=takes)
    wanted = (takes.to_unit(np.asarray(decoded)) if takes.is_uint8 else np.asarray(decoded))[..., 0]
    processor = GeometricImageProcessor(takes.to_dict(), do_resize=False)
    for given in (made.astype(stored), torch.from_numpy(made.astype(stored))):
        pixels = processor(given, return_tensors="pt")["pixel_values"]
        np.testing.assert_allclose(pixels[0, 0].numpy(), wanted, atol=1e-6)
    if described != "12 bits":  # whose values are taken as they are
        assert wanted.max() == pytest.approx(1 if stored == "bool" else 11 / 12, abs=2 / 255)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_pictures_are_turned_as_their_exif_says(mode: str) -> None:
    shape, top = ((3, 4, 3), 255) if mode == "RGB" else ((3, 4), 65535 if mode == "I;16" else 255)
    picture = Image.fromarray(
        np.linspace(0, top, int(np.prod(shape))).reshape(shape).astype("u2" if top > 255 else "u1")
    )
    processor = GeometricImageProcessor(GRAY.to_dict(), do_resize=False)
    for orientation in range(1, 9):
        picture.getexif()[0x0112] = orientation
        turned = processor(ImageOps.exif_transpose(picture), return_tensors="pt")["pixel_values"]
        assert torch.equal(processor(picture, return_tensors="pt")["pixel_values"], turned)


def test_ambiguous_shapes_follow_their_library_or_the_argument() -> None:
    described = ImageFormat(channels=(1, 2), names=("a", "b"), mean=(0, 0), std=(1, 1))
    processor = GeometricImageProcessor(described.to_dict(), do_resize=False, do_normalize=False)
    stored = values(2, 9, 2)
    last, first = stored / 255, np.moveaxis(stored, 0, 2) / 255
    for images, options, right in (
        (stored, {}, last),
        (torch.from_numpy(stored), {}, first),
        (stored, {"input_data_format": "channels_first"}, first),
        (torch.from_numpy(stored), {"input_data_format": "channels_last"}, last),
    ):
        made = processor(images, return_tensors="pt", **options)["pixel_values"][0]
        np.testing.assert_allclose(made.permute(1, 2, 0), right, atol=1e-6)


def test_resizing_is_transformers_own() -> None:
    described = ImageFormat(channels=(1, 2, 3), names=("a", "b", "c"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    theirs = ViTImageProcessor(size={"height": 16, "width": 24}, image_mean=described.mean, image_std=described.std)
    ours = GeometricImageProcessor(described.to_dict(), size={"height": 16, "width": 24})
    right = theirs(photo(), return_tensors="pt")["pixel_values"]
    assert (
        ours(photo(), return_tensors="pt")["pixel_values"] - right
    ).abs().max() < 0.6 / 255 / 0.2  # they round to bytes


def test_values_that_are_no_numbers_are_the_low_end() -> None:
    stored = np.ones((8, 8, 1), np.float32)
    stored[0] = np.nan
    described = ImageFormat(channels=(1,), names=("a",), dtype="float32", value_range=((-1, 1),), mean=(0,), std=(1,))
    made = GeometricImageProcessor(described.to_dict(), do_resize=False)(stored, return_tensors="np")["pixel_values"][
        0, 0
    ]
    assert made[0].tolist() == [0] * 8
    assert made[1].tolist() == [1] * 8


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.zeros((30, 30, 5), np.uint16),
            "must have the 4 channels of the model .red, green, blue, infrared., or all 6",
        ),
        (np.zeros((2, 2, 8, 8, 4)), "must have shape"),
        ([], "empty list"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_a_sentence(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeometricImageProcessor(BANDS.to_dict())(images)
    with pytest.raises(TypeError, match="must be a PIL image, an array or a tensor, got str"):
        GeometricImageProcessor(BANDS.to_dict())("photo.tif")
    with pytest.raises(TypeError, match="has no do_flip"):
        GeometricImageProcessor(BANDS.to_dict())(np.zeros((8, 8, 6)), do_flip=True)


def test_it_travels_with_the_weights(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 32}
    folder = tmp_path / "model"
    GTSAModel(GTSAConfig(**fields, num_channels=4, image_format=BANDS.to_dict())).save_pretrained(folder)
    with model_files(folder, "somebody/model") as files:
        assert {"image_processing_vit.py", "image_format.py", "configuration_gtsa.py"} <= files.keys()
        published = tmp_path / "published"
        published.mkdir()
        for name, source in files.items():
            (published / name).write_bytes(source if isinstance(source, bytes) else source.read_bytes())
    saved = json.loads((published / "preprocessor_config.json").read_text())
    assert saved["auto_map"] == {"AutoImageProcessor": "image_processing_vit.GeometricImageProcessor"}
    assert saved["image_format"] == BANDS.to_dict()
    ours = AutoImageProcessor.from_pretrained(published)
    assert type(ours) is GeometricImageProcessor
    assert ours.size == {"height": 32, "width": 32}
    stored = values(40, 48, 6, dtype=np.uint16)
    right = ours(stored, return_tensors="np")["pixel_values"]
    np.save(tmp_path / "stored.npy", stored)
    code = f"""
import numpy as np
from transformers import AutoImageProcessor, AutoModel
processor = AutoImageProcessor.from_pretrained({str(published)!r}, trust_remote_code=True)
model = AutoModel.from_pretrained({str(published)!r}, trust_remote_code=True)
made = processor(np.load({str(tmp_path / "stored.npy")!r}), return_tensors="pt")
assert model(**made).last_hidden_state.shape == (1, 5, 16)
assert "hf_geossl" not in type(processor).__module__
np.save({str(tmp_path / "theirs.npy")!r}, made["pixel_values"].numpy())
"""
    stranger = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert stranger.returncode == 0, stranger.stderr[-2000:]
    np.testing.assert_allclose(np.load(tmp_path / "theirs.npy"), right, rtol=1e-6)


def test_models_of_8_bit_rgb_keep_transformers_processor_which_converts() -> None:
    for described in (None, ImageFormat(mean=(0.5,) * 3)):
        processor = make_image_processor((32, 32), image_format=described)
        assert type(processor) is SegformerImageProcessor
        for mode in ("RGB", "L", "RGBA", "P", "1", "LA", "CMYK"):
            image = Image.fromarray(photo()).convert(mode)
            assert processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32), mode


def test_masks_come_out_in_the_size_of_the_images() -> None:
    class Outputs:
        logits = torch.tensor([[[[5.0, 0.0]], [[0.0, 5.0]]]])  # (1, 2 classes, 1, 2)

    processor = GeometricImageProcessor(GRAY.to_dict())
    assert processor.post_process_semantic_segmentation(Outputs())[0].tolist() == [[0, 1]]
    assert processor.post_process_semantic_segmentation(Outputs(), [(2, 4)])[0].tolist() == [[0, 0, 1, 1]] * 2


def test_outputs_become_what_transformers_processors_make_of_them() -> None:
    """Masks as SegFormer's, depths as DPT's, with sizes and without."""
    draw = torch.Generator().manual_seed(0)
    outputs = SimpleNamespace(
        logits=torch.randn(2, 3, 5, 4, generator=draw), predicted_depth=torch.rand(2, 6, 4, generator=draw)
    )
    ours = GeometricImageProcessor(GRAY.to_dict())
    for sizes in (None, [(9, 13), (4, 8)]):
        masks = SegformerImageProcessor().post_process_semantic_segmentation(outputs, sizes)
        depths = DPTImageProcessor().post_process_depth_estimation(outputs, sizes)
        for found, mask in zip(ours.post_process_semantic_segmentation(outputs, sizes), masks, strict=True):
            assert torch.equal(found, mask)
        for found, depth in zip(ours.post_process_depth_estimation(outputs, sizes), depths, strict=True):
            assert torch.equal(found["predicted_depth"], depth["predicted_depth"])


def test_objects_are_read_as_the_processor_of_yolos_does() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, boxes = (
        torch.randn(2, 9, 4, generator=generator) * 3,
        torch.rand(2, 9, 4, generator=generator),
    )
    outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
    for sizes in (None, [(30, 50), (20, 10)], torch.tensor([[30, 50], [20, 10]])):
        ours, theirs = (
            kind().post_process_object_detection(outputs, 0.6, sizes)
            for kind in (GeometricImageProcessor, YolosImageProcessor)
        )
        assert sum(len(one["scores"]) for one in ours) > 0
        torch.testing.assert_close(ours, theirs)


def test_the_processor_of_rgb_does_to_pixels_what_that_of_a_vit_does() -> None:
    ours = make_image_processor((24, 32), (0.5, 0.4, 0.3), (0.2, 0.3, 0.1))
    size = {"height": 24, "width": 32}
    theirs = ViTImageProcessor(size=size, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.1], do_convert_rgb=True)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 4), dtype=np.uint8)
    for mode in ("RGB", "L", "RGBA", "P", "CMYK", "1"):
        picture = Image.fromarray(pixels).convert(mode)
        values = [processor(picture, return_tensors="pt")["pixel_values"] for processor in (ours, theirs)]
        assert torch.equal(*values), mode


def test_the_processor_of_rgb_serves_the_pipeline_of_segmentation(tmp_path: Path) -> None:
    config = GTSAConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8, num_labels=3
    )
    GTSAForSemanticSegmentation(config).save_pretrained(tmp_path)
    make_image_processor((16, 16)).save_pretrained(tmp_path)
    masks = pipeline("image-segmentation", model=str(tmp_path))(Image.new("RGB", (40, 30)))
    assert {mask["mask"].size for mask in masks} == {(40, 30)}
    assert sum(np.asarray(mask["mask"]).astype(bool).sum() for mask in masks) == 40 * 30
