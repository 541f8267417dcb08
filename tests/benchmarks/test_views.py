"""What `benchmarks.views` compares is the same work: boxes, pixels, turns and colours of the baseline against ours."""

import io
import json
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import benchmarks.views
from benchmarks.baseline_views import MEAN, STD, GTSABaseline, decode
from benchmarks.views import Contest, Stopwatch, jpeg_photographs
from hf_geossl import GTSAViews
from hf_geossl.data.images import decode_pixels
from hf_geossl.views.crops import quarter_turn


def test_photographs_are_jpeg_of_the_size_that_the_targets_name():
    files = jpeg_photographs()
    images = [Image.open(io.BytesIO(file)) for file in files]
    assert len(files) >= 4
    assert {(image.format, image.size) for image in images} == {("JPEG", (640, 480))}
    assert all(np.asarray(image).std() > 20 for image in images)


@pytest.mark.parametrize(("exact", "tolerance"), [(True, 0), (False, 1)])
def test_the_same_boxes_and_turns_give_the_baselines_pixels(exact, tolerance):
    views, plain = GTSAViews(exact_resize=exact), GTSABaseline()
    unequal = []
    for seed, file in enumerate(jpeg_photographs()):
        image, ours = decode(file), views(decode_pixels(file), seed=seed)
        boxes = [tuple(map(int, box)) for box in ours["crop_boxes"].tolist()]
        turns = ours["quarter_turns"]
        theirs = [
            np.array(crop.rotate(90 * turn))
            for crop, turn in zip(plain.cut_views(image, boxes), turns.tolist(), strict=True)
        ]
        turned = [
            *quarter_turn(ours["global_crops"], turns[:2]).permute(0, 2, 3, 1).numpy(),
            *quarter_turn(ours["local_crops"], turns[2:]).permute(0, 2, 3, 1).numpy(),
        ]
        for mine, other in zip(turned, theirs, strict=True):
            unequal.append(np.abs(mine.astype(int) - other))
            assert unequal[-1].max() <= tolerance
    assert np.mean([difference.mean() for difference in unequal]) <= 0.02


def test_the_baseline_draws_what_ours_draws():
    """Mean share of the area and aspect ratio of the crops, and the overlaps that the method asks for."""
    image = Image.new("RGB", (640, 480))
    torch.manual_seed(0)
    theirs = np.array([GTSABaseline().draw_boxes(image) for _ in range(400)], dtype=float)
    ours = np.array([GTSAViews().draw_boxes(random.Random(i), 640, 480) for i in range(400)], dtype=float)
    for measure in (
        lambda b: (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) / (640 * 480),
        lambda b: np.log((b[..., 2] - b[..., 0]) / (b[..., 3] - b[..., 1])),
        lambda b: (b[..., 0] + b[..., 2]) / 1280,
        lambda b: (b[..., 1] + b[..., 3]) / 960,
    ):
        for group in (slice(0, 2), slice(2, None)):
            a, b = measure(theirs[:, group]), measure(ours[:, group])
            assert abs(a.mean() - b.mean()) < 5 * a.std() * np.sqrt(2 / 400)
            assert abs(a.std() / b.std() - 1) < 0.2
    corner = np.maximum(theirs[:, :2, None, :2], theirs[:, None, 2:, :2])
    end = np.minimum(theirs[:, :2, None, 2:], theirs[:, None, 2:, 2:])
    assert (np.maximum(end - corner, 0).prod(-1) > 3072).all()


def test_colours_have_the_statistics_of_the_baseline():
    """The same crops many times through both: mean and deviation of the channels, contrast and colour within a view."""
    views, count = GTSAViews(), 1500
    crops = torch.stack(
        [
            torch.from_numpy(np.array(Image.open(io.BytesIO(file)).resize((48, 48)))).permute(2, 0, 1)
            for file in jpeg_photographs()
        ]
    )
    crops = crops[torch.arange(count) % len(crops)]
    batch = {
        "global_crops": crops[:, None],
        "local_crops": torch.empty(count, 0, 3, 48, 48, dtype=torch.uint8),
        "crop_boxes": torch.zeros(count, 1, 4),
        "quarter_turns": torch.zeros(count, 1, dtype=torch.int64),
    }
    random.seed(0)
    torch.manual_seed(0)
    ours = views.augment(batch, torch.Generator().manual_seed(1))["global_pixel_values"][:, 0]
    change = GTSABaseline().color
    theirs = torch.stack(
        [torch.from_numpy(np.array(change(Image.fromarray(crop.permute(1, 2, 0).numpy())))) for crop in crops]
    )
    theirs = theirs.permute(0, 3, 1, 2).float() / 255
    ours = ours * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]

    def color(images):  # distance from grey
        return (images - images.mean(1, keepdim=True)).abs().mean()

    assert (ours.mean((0, 2, 3)) - theirs.mean((0, 2, 3))).abs().max() < 0.02
    assert (ours.std((0, 2, 3)) / theirs.std((0, 2, 3)) - 1).abs().max() < 0.05
    assert abs(ours.std((2, 3)).mean() / theirs.std((2, 3)).mean() - 1) < 0.05
    assert abs(color(ours) / color(theirs) - 1) < 0.06
    sharpness = [images.diff(dim=-1).abs().mean() for images in (ours, theirs)]  # blur as often and as wide
    assert abs(sharpness[0] / sharpness[1] - 1) < 0.06


@pytest.mark.parametrize("method", ["gtsa", "loca", "equicoherent"])
def test_ours_and_the_baseline_make_views_of_the_same_shapes(method):
    contest = Contest(method, 2)
    made = [tensor for tensor in contest.everything().values() if tensor is not None and tensor.dtype == torch.float32]
    pixels = sum(tensor.numel() for tensor in made if tensor.shape[-1] in (224, 96))
    theirs = contest.baseline()
    assert sum(tensor.numel() for tensor in theirs if tensor.shape[-1] in (224, 96)) == pixels
    assert {tuple(tensor.shape[-3:]) for tensor in theirs[:2]} == {(3, 224, 224), (3, 96, 96)}
    for tensor in theirs[:2]:
        assert -2.2 < tensor.min() < tensor.max() < 2.7


def test_a_stopwatch_gives_every_stage_its_own_time(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(benchmarks.views.time, "process_time", lambda: next(now))
    watch = Stopwatch({"json.dumps": "outer", "json.loads": "inner"})
    original = json.loads
    # every look at the clock is a second: rest | outer | inner | outer | rest
    monkeypatch.setattr(json, "dumps", lambda: json.loads("1"))
    watch.run(lambda: json.dumps(), repeats=3)
    assert watch.seconds == {"outer": 6.0, "inner": 3.0, "rest": 4.0}
    assert json.loads is original


def test_the_command_prints_one_line_of_json(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["views", "--json", "--repeats", "2", "--batch_size", "2"])
    benchmarks.views.main()
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert 0 < result["worker_ours"] < result["ours"] < result["baseline"]
    assert 1 < result["ratio"] < result["worker_ratio"]


def test_the_profile_is_drawn_and_its_stages_add_up(monkeypatch, capsys, tmp_path):
    picture = tmp_path / "profile.png"
    arguments = ["views", "--json", "--repeats", "1", "--batch_size", "2", "--profile", str(picture)]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmarks.views.main()
    result = json.loads(capsys.readouterr().out)
    for name in ("baseline", "ours"):
        assert all(result[name][stage] > 0 for stage in ("decode", "crops", "turn", "colour, normalise"))
    with Image.open(picture) as image:
        assert image.width > 800
