"""The demo without a browser: what each tab computes, which folders it opens, which pictures it takes."""

import base64
import io
import json
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hf_geossl.demo as demo_package
from hf_geossl.demo import analyses, heads, loading, pictures
from hf_geossl.demo.loading import DemoModel, open_model
from hf_geossl.hub.export import export_model, make_image_processor
from hf_geossl.views.photometric import IMAGENET_MEAN, IMAGENET_STD
from hf_geossl.views.transformation_path import TransformationParameters, TransformationPath
from tests.helpers.methods import METHODS, randomise

MEAN, STD = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))


def noise(seed: int, side: int = 32) -> Image.Image:
    """A picture at the size of the tiny models, so that nothing is resampled."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def pixels(*shown: Image.Image) -> torch.Tensor:
    arrays = [torch.from_numpy(np.array(picture)).permute(2, 0, 1).double() / 255 for picture in shown]
    return ((torch.stack(arrays) - MEAN.double()) / STD.double()).float()


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def whole_model(method: str, seed: int = 0, **fields: Any) -> Any:
    """A pretraining model whose teacher is another than its student."""
    return randomise(METHODS[method].kind("ForPreTraining")(METHODS[method].config(**fields)), seed=seed)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DemoModel]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: open_model(save(whole_model(name), folder / name)) for name in METHODS}


def tokens_of(model: DemoModel, picture: Image.Image) -> torch.Tensor:
    """Patch tokens `(4, 4, 32)` of the published trunk, computed beside the demo."""
    trunk = getattr(model.whole.teacher, model.method)
    with torch.no_grad():
        return trunk(pixels(picture)).last_hidden_state[0, int(trunk.config.use_class_token) :].view(4, 4, -1)


# ---- Folders


def _mark_whole(checkpoint: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    (checkpoint / "COMPLETE.json").write_text(json.dumps({"world_size": 1, "files": sizes}))


def test_newest_whole_checkpoint_of_a_run_is_shown_with_the_teachers_features(tmp_path: Path) -> None:
    models = [whole_model("gtsa", seed=seed) for seed in range(3)]
    export_model(models[2], tmp_path, image_processor=make_image_processor((32, 32), (0.5,) * 3, (0.25,) * 3))
    for step, model in zip((20, 100, 120), models, strict=True):
        save(model, tmp_path / f"checkpoint-{step}")
        _mark_whole(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-120" / "config.json").write_text("{}")  # cut off: no longer whole
    for folder in (tmp_path, tmp_path / "checkpoint-100"):
        model = open_model(folder)
        for name, value in models[1].teacher.gtsa.state_dict().items():
            torch.testing.assert_close(model.trunk.state_dict()[name], value, rtol=0, atol=0)
        for name, value in models[1].state_dict().items():
            torch.testing.assert_close(model.whole.state_dict()[name], value, rtol=0, atol=0)
        assert (model.mean, model.std) == ((0.5,) * 3, (0.25,) * 3)
        assert model.why_no_head() is None
    assert open_model(tmp_path).source == "the teacher in checkpoint-100"


def test_trunk_alone_says_what_is_missing(tmp_path: Path) -> None:
    for name, missing in [("gtsa", "rotation head"), ("loca", "position head"), ("equicoherent", "decoders")]:
        model = open_model(export_model(whole_model(name), tmp_path / name))
        assert model.whole is None
        assert model.source == "the trunk"
        sentence = model.why_no_head()
        assert missing in sentence
        assert sentence.count(". ") == 0
        assert sentence.endswith(".")


def test_models_without_what_a_tab_takes_say_so(tmp_path: Path) -> None:
    for number, (name, fields, words) in enumerate(
        [
            ("equicoherent", {"num_intermediate": 0}, "without decoders"),
            ("equicoherent", {"transformation": None}, "without decoders"),
            ("equicoherent", {"host": "vicreg", "reconstruction_weight": 0}, "without decoders"),
            ("loca", {"location_target": "self"}, "their own view"),
            ("loca", {"image_size": (32, 48)}, "48 x 32"),
        ]
    ):
        model = open_model(save(whole_model(name, **fields), tmp_path / str(number)))
        assert words in str(model.why_no_head())


def test_folders_that_hold_no_model_of_ours_are_refused_in_one_line(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> Path:
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file.replace("_json", ".json")).write_text(text)
        return tmp_path / name

    cut = save(METHODS["gtsa"].model("Model"), tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    part = save(METHODS["gtsa"].model("Model"), tmp_path / "part")
    config = json.loads((part / "config.json").read_text()) | {"num_hidden_layers": 6}
    (part / "config.json").write_text(json.dumps(config))
    grey = save(METHODS["gtsa"].model("Model", num_channels=1), tmp_path / "grey")
    processed = save(METHODS["gtsa"].model("Model"), tmp_path / "processed")
    (processed / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5]}')
    for place, message in [
        (tmp_path / "nowhere", "there is no folder"),
        (folder("empty"), "no config.json"),
        (
            folder("bert", config_json='{"model_type": "bert"}'),
            "type 'bert', and this library's are gtsa, loca, equicoherent",
        ),
        (folder("list", config_json="[]"), "no configuration"),
        (folder("broken", config_json="{"), "cannot be read"),
        (folder("weightless", config_json='{"model_type": "gtsa"}'), "cannot be opened"),
        (cut, "cannot be opened"),
        (part, "incomplete"),
        (grey, "1 channels"),
        (processed, "three means"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            open_model(place)
        assert "\n" not in str(caught.value)


def test_without_gradio_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo_package, "find_spec", lambda name: None)
    for start in (demo_package.build_demo, demo_package.launch_demo):
        with pytest.raises(ImportError, match="pip install 'hf_geossl\\[space\\]'"):
            start(tmp_path)


# ---- What the trunk sees


@pytest.mark.parametrize("method", METHODS)
def test_feature_colors_are_the_principal_components_of_the_teachers_patches(
    opened: dict[str, DemoModel], method: str
) -> None:
    shown = [noise(0), noise(1)]
    flat = torch.stack([tokens_of(opened[method], picture) for picture in shown]).double().flatten(0, 2).numpy()
    _, _, vectors = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    components = (flat - flat.mean(axis=0)) @ vectors[:3].T
    components *= np.where(vectors[:3].sum(axis=1) < 0, -1, 1)
    low, high = np.quantile(components, 0.02, axis=0), np.quantile(components, 0.98, axis=0)
    expected = np.clip((components - low) / (high - low), 0, 1).reshape(2, 4, 4, 3)
    np.testing.assert_allclose(analyses.feature_colors(opened[method], shown), expected, atol=1e-3)
    assert analyses.feature_colors(opened[method], shown, finer=True).shape == (2, 8, 8, 3)


def test_match_is_the_patch_of_largest_cosine_and_looks_back(opened: dict[str, DemoModel]) -> None:
    model = opened["gtsa"]
    first, second = noise(0), noise(1)
    here, there = tokens_of(model, first), tokens_of(model, second)

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a.double() @ b.double() / a.double().norm() / b.double().norm())

    for cell in [(0, 0), (2, 3), (3, 1)]:
        match = analyses.find_match(model, first, second, cell)
        expected = np.array([[cosine(here[cell], there[r, c]) for c in range(4)] for r in range(4)])
        np.testing.assert_allclose(match.cosines, expected, atol=1e-5)
        assert match.best == np.unravel_index(expected.argmax(), (4, 4))
        assert match.cosine == pytest.approx(expected.max(), abs=1e-5)
        back = np.array([[cosine(there[match.best], here[r, c]) for c in range(4)] for r in range(4)])
        assert match.back == np.unravel_index(back.argmax(), (4, 4))
        same = analyses.find_match(model, first, first, cell)
        assert (same.best, same.back) == (cell, cell)


@pytest.mark.parametrize("method", METHODS)
def test_attention_is_the_last_layers(opened: dict[str, DemoModel], method: str) -> None:
    model, picture = opened[method], noise(2)
    prefix = int(model.config.use_class_token)
    whole = model.trunk(pixels(picture), output_attentions=True).attentions[-1][0]
    assert whole.shape == (2, 16 + prefix, 16 + prefix)
    seen = analyses.attention_map(model, picture, (1, 2), 1)
    torch.testing.assert_close(seen, whole[1, prefix + 6, prefix:].view(4, 4), atol=1e-5, rtol=1e-4)
    mean = analyses.attention_map(model, picture, (1, 2), None)
    torch.testing.assert_close(mean, whole[:, prefix + 6, prefix:].mean(0).view(4, 4), atol=1e-5, rtol=1e-4)
    if method == "loca":
        with pytest.raises(ValueError, match="no class token"):
            analyses.attention_map(model, picture, None, 0)
    else:
        seen = analyses.attention_map(model, picture, None, 0)
        torch.testing.assert_close(seen, whole[0, 0, 1:].view(4, 4), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_neighbours_are_ordered_by_cosine_without_the_picture_itself(opened: dict[str, DemoModel], method: str) -> None:
    model, others = opened[method], [noise(seed) for seed in range(5)]
    picture = noise(3)
    trunk = getattr(model.whole.teacher, method)
    with torch.no_grad():
        states = trunk(pixels(picture, *others)).last_hidden_state
    pooled = states[:, 0] if method == "equicoherent" else states[:, int(trunk.config.use_class_token) :].mean(1)
    expected = torch.nn.functional.cosine_similarity(pooled[:1], pooled[1:])
    found = analyses.nearest_pictures(model, picture, others)
    assert [index for index, _ in found] == [int(i) for i in expected.argsort(descending=True) if i != 3]
    torch.testing.assert_close(torch.tensor([c for _, c in found]), expected[[i for i, _ in found]], atol=1e-5, rtol=0)
    patches = analyses.nearest_patches(model, picture, (2, 1), others)
    here = tokens_of(model, picture)[2, 1]
    scores = {i: torch.nn.functional.cosine_similarity(tokens_of(model, others[i]), here, dim=-1) for i in (0, 1, 2, 4)}
    assert [index for index, _, _ in patches] == sorted(scores, key=lambda i: -scores[i].max().item())
    for index, cell, cosine in patches:
        assert scores[index][cell].item() == pytest.approx(scores[index].max().item(), abs=1e-5)
        assert cosine == pytest.approx(scores[index].max().item(), abs=1e-5)


# ---- What the heads say


def test_turn_probabilities_are_those_of_the_pretraining_model(opened: dict[str, DemoModel]) -> None:
    model, picture = opened["gtsa"], noise(4)
    boxes = torch.tensor([[[0.0, 0, 32, 32]]])
    for quarter in range(4):
        turned = Image.fromarray(np.rot90(np.array(picture), quarter).copy())
        with torch.no_grad():
            views = pixels(turned)[None]
            logits = model.whole(views, crop_boxes=boxes, quarter_turns=torch.tensor([[quarter]])).rotation_logits
        expected = logits[0, 0].softmax(-1).tolist()
        assert heads.turn_probabilities(model, picture, quarter) == pytest.approx(expected, abs=1e-5)
        assert np.array_equal(np.array(heads.turned(picture, quarter)), np.array(turned))


def test_box_is_placed_as_predict_positions_says(opened: dict[str, DemoModel]) -> None:
    model, picture = opened["loca"], noise(5)
    placed = heads.place_box(model, picture, (0.75, 0.25, 0.25, 0.75))  # drawn from the right to the left
    assert (placed.box, placed.side, placed.grid) == ((8, 8, 24, 24), 2, 4)
    assert placed.true == [5, 6, 9, 10]
    query = picture.crop((8, 8, 24, 24))  # 16 pixels: two patches of 8, nothing resampled
    scores = model.whole.predict_positions(pixels(picture), pixels(query))
    assert placed.predicted == scores[0].argmax(-1).tolist()
    right = sum(a == b for a, b in zip(placed.true, placed.predicted, strict=True))
    assert placed.exact == right / 4
    large = heads.place_box(model, picture, (0, 0, 1, 1))
    assert (large.side, large.true) == (4, list(range(16)))
    scores = model.whole.predict_positions(pixels(picture), pixels(picture))
    assert large.predicted == scores[0].argmax(-1).tolist()


def test_placement_tells_how_far_off_it_is() -> None:
    placed = heads.Placement((0, 0, 16, 16), 2, [0, 1, 4, 5], [5, 6, 9, 10], 4)
    assert placed.exact == 0
    assert placed.distance == pytest.approx(math.sqrt(2))
    assert placed.guessed_distance == pytest.approx(2.0080, abs=1e-3)
    assert placed.predicted_box == (1, 1, 3, 3)
    assert heads.Placement((0, 0, 1, 1), 2, [0, 1, 4, 5], [0, 1, 4, 6], 4).exact == 0.75


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.1, 0.2, 0.5, 0.6), (10, 20, 50, 60)),
        ((-3.0, 0.9, 0.5, 7.0), (0, 90, 50, 100)),
        ((0.99, 0.99, 0.99, 0.99), (92, 92, 100, 100)),  # a click is a smallest box
        ((0.0, 0.0, 0.0, 0.5), (0, 0, 8, 50)),
    ],
)
def test_drawn_boxes_lie_inside_and_are_not_empty(box: Any, expected: tuple[int, ...]) -> None:
    assert heads.whole_box(box, 100, 8) == expected


@pytest.mark.parametrize("transformation", ["se2", "rotation", "translation", "color", "blur"])
def test_path_shows_what_the_model_reconstructs(tmp_path: Path, transformation: str) -> None:
    model = open_model(save(whole_model("equicoherent", transformation=transformation), tmp_path))
    path = TransformationPath(transformation, 2)
    controls = heads.path_controls(heads.path_of(model))
    values = [low + 0.8 * (high - low) for _, _, _, low, high, _ in controls]
    ends = path.draw(1, torch.Generator().manual_seed(0))
    chosen = {
        "angles": torch.tensor([math.radians(values[0])]),
        "translations": torch.tensor([[0.01 * value for value in values[-2:]]]),
        **{
            name: torch.tensor([0.01 * v])
            for name, v in zip(("brightness", "contrast", "saturation", "hue"), values, strict=False)
        },
        "blur_sigma": torch.tensor([values[0]]),
    }
    used = {
        name: value if bool(getattr(ends, name).any()) else torch.zeros_like(value) for name, value in chosen.items()
    }
    zero = {name: torch.zeros(1) for name in ("angles", "brightness", "contrast", "saturation", "hue", "blur_sigma")}
    parameters = TransformationParameters(
        **{**zero, "translations": torch.zeros(1, 2), **used}, transformed=torch.tensor([True])
    )
    picture, samples = noise(6), [noise(7), noise(8)]
    middle = picture.crop((3, 3, 29, 29)).resize((32, 32), Image.Resampling.BILINEAR)
    end, between = path.render(pixels(picture), parameters, IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        views = torch.stack([pixels(middle)[0], end[0]])[None]
        expected = model.whole(views, intermediate_pixel_values=between).reconstructions[0]
    for point in range(4):
        found = heads.path_point(model, picture, samples, values, point)
        true = [pixels(picture)[0], *between[0], end[0]][point]
        torch.testing.assert_close((found.true - MEAN) / STD, true, atol=2e-5, rtol=0)
        torch.testing.assert_close((found.final - MEAN) / STD, end[0], atol=2e-5, rtol=0)
        if point in (0, 3):
            assert found.reconstructed is None
            continue
        torch.testing.assert_close(
            found.reconstructed, (expected[point - 1] * STD + MEAN).clamp(0, 1), atol=1e-4, rtol=1e-3
        )
        error = (expected[point - 1] - between[0, point - 1]).square().mean().item()
        assert found.error == pytest.approx(error, rel=1e-3)
        others = [path.render(pixels(one), parameters, IMAGENET_MEAN, IMAGENET_STD)[1][0, point - 1] for one in samples]
        mean_image = (torch.stack(others).mean(0) - between[0, point - 1]).square().mean().item()
        assert found.mean_image_error == pytest.approx(mean_image, rel=1e-3)


def test_path_of_a_model_that_carries_the_task_and_of_one_that_reconstructs_the_end(tmp_path: Path) -> None:
    fields = {"reconstruction": "blur", "num_intermediate": 1, "reconstruct_final": True}
    model = open_model(save(whole_model("gtsa", **fields), tmp_path))
    picture = noise(9)
    middle = picture.crop((3, 3, 29, 29)).resize((32, 32), Image.Resampling.BILINEAR)
    path = TransformationPath("blur", 1)
    parameters = path.draw(1)
    parameters.blur_sigma[:] = 1.5
    end, between = path.render(pixels(picture), parameters, IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        expected = model.whole(
            pixels(middle)[None],
            crop_boxes=torch.tensor([[[0.0, 0, 32, 32]]]),
            quarter_turns=torch.zeros(1, 1, dtype=torch.int64),
            transformed_pixel_values=end,
            intermediate_pixel_values=between,
        ).reconstructions[0]
    assert heads.path_point(model, picture, [picture], [1.5], 0).reconstructed is None
    for point in (1, 2):
        found = heads.path_point(model, picture, [picture], [1.5], point).reconstructed
        torch.testing.assert_close(found, (expected[point - 1] * STD + MEAN).clamp(0, 1), atol=1e-4, rtol=1e-3)


# ---- Pictures


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_kind_of_picture_is_taken() -> None:
    red = Image.new("RGB", (40, 20), (200, 30, 40))
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned
    half = Image.new("RGB", (40, 20), "white")
    half.paste((0, 0, 0), (0, 0, 20, 20))
    upright = pictures.read_upload(encoded(half, "JPEG", exif=exif, quality=95))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[0] < 20
    assert upright.getpixel((10, 35))[0] > 235
    transparent = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    grey = Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16))
    for content, color in [
        (encoded(transparent), (255, 255, 255)),
        (encoded(red.convert("CMYK"), "JPEG", quality=95), (200, 30, 40)),
        (encoded(grey), (128, 128, 128)),
        (encoded(red.quantize()), (200, 30, 40)),
        (encoded(Image.new("RGB", (1, 1), (9, 8, 7))), (9, 8, 7)),
    ]:
        picture = pictures.read_upload(content)
        assert picture.mode == "RGB"
        assert picture.getpixel((0, 0)) == pytest.approx(color, abs=12)
        fitted = pictures.fit_picture(picture, (32, 32))
        assert fitted.size == (448, 448)
        assert fitted.getpixel((224, 224)) == pytest.approx(color, abs=12)
    assert pictures.fit_picture(red, (32, 64)).size == (448, 224)


def test_uploads_that_cannot_be_used_get_a_plain_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    whole = encoded(noise(0, 64), "JPEG")
    for content, words in [
        (b"", "cannot be read as a picture"),
        (b"%PDF-1.7 no picture", "cannot be read as a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "cannot be read as a picture"),
        (whole[: len(whole) // 2], "cannot be read as a picture"),
        (bomb, "34 million pixels"),
        (bytes(pictures.MAX_BYTES + 2**20), "17 MiB; the demo takes up to 16 MiB"),
    ]:
        with pytest.raises(pictures.UploadError, match=words) as caught:
            pictures.read_upload(content)
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(".")


def test_heat_maps_and_marks_lie_over_their_patches() -> None:
    ground = Image.new("RGB", (64, 64), (128, 128, 128))
    values = torch.zeros(4, 4)
    values[1, 2] = 3.0
    heat = np.array(pictures.heat_map(ground, values)).astype(int)
    warm = heat[..., 0] > heat[0, 0, 0]
    rows, columns = np.nonzero(warm)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 31, 32, 47)
    assert pictures.cell_box((1, 2), (4, 4), (64, 64)) == (32, 16, 47, 31)
    marked = np.array(pictures.marked(ground, (32, 16, 47, 31)))
    rows, columns = np.nonzero((marked != 128).any(axis=-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 37, 26, 53)
    assert (marked[18:30, 34:46] == 128).all()
    flat = pictures.heat_map(ground, torch.full((4, 4), 0.3))  # no difference is no error
    assert len(flat.getcolors()) == 1


def test_samples_come_from_a_folder_or_are_scenes(tmp_path: Path) -> None:
    assert [picture.size for picture in pictures.sample_pictures(None)] == [(448, 448)] * 8
    for name, color in [("2.png", "red"), ("1.png", "blue")]:
        Image.new("RGB", (5, 7), color).save(tmp_path / name)
    found = pictures.sample_pictures(tmp_path)
    assert [picture.getpixel((0, 0)) for picture in found] == [(0, 0, 255), (255, 0, 0)]
    (tmp_path / "3.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="samples hold a picture that cannot be read"):
        pictures.sample_pictures(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="two or more pictures, got .* with 0"):
        pictures.sample_pictures(tmp_path / "none")


# ---- The page


@pytest.fixture(scope="module")
def pages(opened: dict[str, DemoModel]) -> dict[str, Any]:
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'hf_geossl[space]'")
    from hf_geossl.demo.page import Page

    built = {}
    for name, model in opened.items():
        built[name] = Page(model, [noise(seed) for seed in range(4)])
        built[name].demo = built[name].build()
    return built


def shown(page: Any, tab: str, *values: Any, place: tuple[float, float] = (0.3, 0.6)) -> str:
    from hf_geossl.demo.page import Picked

    by_name = {one.name: one for one in page.tabs}
    return "".join(page._show(by_name[tab], Picked(0), Picked(1), False, place, *values))


def first_picture(html: str, number: int) -> Image.Image:
    """The picture of a figure of the page."""
    url = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)[number]
    return Image.open(io.BytesIO(base64.b64decode(url)))


def test_every_method_has_its_tabs(pages: dict[str, Any]) -> None:
    own = {"gtsa": "Quarter turn", "loca": "Drag a box", "equicoherent": "Transformation path"}
    for name, page in pages.items():
        tabs = ["Features", "Correspondence", own[name], "Attention", "Nearest neighbours"]
        assert [tab.name for tab in page.tabs] == tabs
        assert not page.demo.analytics_enabled


def test_tabs_write_down_what_the_model_says(pages: dict[str, Any], opened: dict[str, DemoModel]) -> None:
    picture, other = pages["gtsa"].samples[:2]
    text = shown(pages["gtsa"], "Quarter turn", 1)
    expected = heads.turn_probabilities(opened["gtsa"], picture, 1)
    assert [float(n) for n in re.findall(r"<span>([\d.]+)%</span>", text)] == pytest.approx(
        [100 * p for p in expected], abs=0.06
    )
    assert "turned by 90°</span>" in text.split('class="true">')[1]
    match = analyses.find_match(opened["gtsa"], picture, other, (2, 1))
    text = shown(pages["gtsa"], "Correspondence")
    assert f"row 3, column 2 of A is found in row {match.best[0] + 1}, column {match.best[1] + 1} of B" in text
    assert f"a cosine of {match.cosine:.3f}" in text
    best = np.array(first_picture(text, 2).convert("RGB")).astype(int)
    left, top, *_ = pictures.cell_box(match.best, (4, 4), (448, 448))
    assert abs(best[top + 50, left - 5] - (0, 200, 255)).max() < 90  # the mark, through JPEG
    box = (0.25, 0.25, 0.75, 0.75)
    placed = heads.place_box(opened["loca"], pages["loca"].samples[0], box)
    text = shown(pages["loca"], "Drag a box", box)
    assert f"{round(4 * placed.exact)} of 4 patches are put exactly" in text
    assert "guessing: 6.2%" in text
    page = pages["equicoherent"]
    point = heads.path_point(opened["equicoherent"], page.samples[0], page.samples, [30.0, 1.0, -2.0], 2)
    text = shown(page, "Transformation path", 2, 30.0, 1.0, -2.0)
    assert f"reconstruction: {point.error:.3f}" in text
    assert f"would have {point.mean_image_error:.3f}" in text
    assert "at 2/3 of the way" in text
    assert "No decoder reconstructs this point" in shown(page, "Transformation path", 3, 30.0, 1.0, -2.0)
    text = shown(page, "Attention", "class", 1)
    seen = analyses.attention_map(opened["equicoherent"], page.samples[0], None, 1)
    assert f"largest share of one patch is {100 * seen.max().item():.1f}%" in text
    assert "head 2" in text
    text = shown(page, "Nearest neighbours")
    nearest = analyses.nearest_pictures(opened["equicoherent"], page.samples[0], page.samples)
    assert f"1. cosine {nearest[0][1]:.3f}" in text
    assert "Features of B" in shown(page, "Features")


def test_errors_reach_the_person_as_one_sentence_and_the_log_as_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install 'hf_geossl[space]'")
    from hf_geossl.demo.page import plainly

    def fail(kind: type[Exception]) -> None:
        raise kind("at /home/somebody/model.py")

    with pytest.raises(gradio.Error) as caught:
        plainly(fail)(RuntimeError)
    assert caught.value.message == (
        "This could not be computed. Your pictures are kept; please try again or choose others."
    )
    assert "/home/somebody/model.py" in caplog.text
    with pytest.raises(gradio.Error, match="at /home"):
        plainly(fail)(pictures.UploadError)


def test_tokens_are_computed_once_and_not_kept_forever(opened: dict[str, DemoModel], monkeypatch: Any) -> None:
    model = DemoModel(opened["gtsa"].trunk, None, IMAGENET_MEAN, IMAGENET_STD, "the trunk")
    monkeypatch.setattr(loading, "_KEPT", 3)
    calls: list[int] = []
    hook = model.trunk.register_forward_pre_hook(lambda *args: calls.append(1))
    for seed in (0, 1, 0, 2, 0, 3, 0, 1):  # 1 has been dropped at 3
        model.encode(noise(seed))
    hook.remove()
    assert len(calls) == 5
