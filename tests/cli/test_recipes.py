"""Recipes: YAML in sections or flat, and the settings of the papers."""

from pathlib import Path

import pytest
import yaml

from hf_geossl.cli.describe import method_arguments
from hf_geossl.cli.pretrain import make_training_arguments
from hf_geossl.cli.pretrain_arguments import Pretraining, parse_pretrain
from hf_geossl.cli.pretrain_model import make_config, make_views
from hf_geossl.cli.recipes import read_recipe, recipes
from hf_geossl.cli.usage import UsageError
from hf_geossl.methods import METHODS
from tests.helpers.small_recipes import SMALL, error_line

# 16-bit floats want a GPU; all else is as published
ON_CPU = ["--fp16", "false", "--use_cpu", "true"]


def test_wrong_recipes_give_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(content: str) -> str:
        (tmp_path / "a.yaml").write_text(content)
        return error_line(capsys, "pretrain", str(tmp_path / "a.yaml"))

    assert "did you mean 'quickstart'?" in error_line(capsys, "pretrain", "quikstart")
    assert "the recipe comes first" in error_line(capsys, "pretrain", "--max_steps", "3")
    assert "unknown key 'hidden_sise'; did you mean 'hidden_size'?" in error("hidden_sise: 3")
    assert "unknown key 'hidden_sise'; did you mean 'hidden_size'?" in error("model:\n  hidden_sise: 3")
    assert "hidden_size belongs in section model, not in views" in error("views:\n  hidden_size: 3")
    assert "section data must hold lines 'key: value', got 'scenes'" in error("data: scenes")
    assert "must hold lines 'key: value', got list" in error("- 1\n- 2")
    assert "a.yaml: max_steps takes one value, not a list" in error("max_steps: [1, 2]")
    assert "max_steps stands in it twice: leave one of the two out" in error("max_steps: 1\nmax_steps: 2")
    assert "seed stands in it twice" in error("training:\n  seed: 1\n  seed: 2")
    assert "seed stands in it twice" in error("seed: 1\ntraining:\n  seed: 2")
    assert "is no valid YAML" in error("a: [1")
    assert "method 'gsta' is unknown; did you mean 'gtsa'?" in error("method: gsta")
    assert "cannot be read" in error_line(capsys, "pretrain", str(tmp_path / "e.yaml"))


def test_sections_and_flat_lines_say_the_same(tmp_path: Path) -> None:
    arguments = method_arguments("gtsa")
    sections = {argument.name: argument.section for argument in arguments}
    content: dict[str, dict[str, object]] = {}
    for key, value in SMALL.items():
        if key != "method":
            content.setdefault(sections[key], {})[key] = value
    (tmp_path / "flat.yaml").write_text(yaml.safe_dump(SMALL))
    (tmp_path / "parts.yaml").write_text(yaml.safe_dump({"method": "gtsa", **content}))
    flat, parts = (parse_pretrain([str(tmp_path / f"{name}.yaml")]) for name in ("flat", "parts"))
    assert (flat.data, flat.model, flat.views) == (parts.data, parts.model, parts.views)
    assert {**flat.training, "output_dir": ""} == {**parts.training, "output_dir": ""}
    assert flat.model["rotation_hidden_sizes"] == [16, 8]
    assert flat.training["base_learning_rate"] == 0.1


def test_words_of_yaml_1_1_are_words(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "method: loca\nviews: {blur: off}\ntraining: {eval_strategy: no, use_cpu: TRUE, warmup_steps: 1e-1}\n"
    )
    given = parse_pretrain([str(path)])
    assert given.views == {"blur": "off"}
    assert (given.training["eval_strategy"], given.training["use_cpu"]) == ("no", True)
    assert given.training["warmup_steps"] == 0.1


def test_a_dictionary_reaches_the_training_arguments(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("training:\n  max_steps: 2\n  use_cpu: true\n  lr_scheduler_kwargs: {num_cycles: 2}\n")
    assert make_training_arguments(parse_pretrain([str(path)])).lr_scheduler_kwargs == {"num_cycles": 2}


def test_every_recipe_stands_in_sections() -> None:
    for name in recipes():
        recipe = read_recipe(name)
        assert all(section is not None for section, _, _ in recipe.entries), name
        assert recipe.words(method_arguments(recipe.method))


def _views(given: Pretraining) -> object:
    model = given.method.load("pretraining")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    heads = {
        name: 16 for name in ("head_hidden_size", "num_prototypes", "projector_hidden_size") if name in given.model
    }
    config = make_config(given)
    for key, value in {**small, **heads}.items():
        setattr(config, key, value)
    return make_views(given, model(config))


def test_gtsa_recipes_are_the_papers_settings_and_the_command_line_wins() -> None:
    loca = {"loca_quickstart", "loca_base_imnet1k", "loca_small_imnet1k", "photos_quickstart"}
    equicoherent = {f"equicoherent_{name}" for name in ("quickstart", "ibot_small", "dinov2_large", "vicreg_small")}
    gtsa = {"quickstart", "gtsa_small_coco", "gtsa_small_ade20k"}
    posttraining = {f"{name}_posttrain" for name in METHODS}
    assert set(recipes()) == {*gtsa, *loca, *equicoherent, *posttraining, "dino_small_coco"}
    for name in ("gtsa_small_coco", "gtsa_small_ade20k"):
        given = parse_pretrain([name, *ON_CPU])
        config, args, views = make_config(given), make_training_arguments(given), _views(given)
        assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (384, 12, 6)
        assert (config.projector_hidden_size, config.projection_size, config.drop_path_rate) == (384, 768, 0.1)
        assert (views.global_size, views.local_size, views.num_global, views.num_local) == (224, 96, 2, 8)
        epoch = {"gtsa_small_coco": 118287, "gtsa_small_ade20k": 20210}[name] // 512
        assert args.max_steps == 100 * epoch
        assert args.get_warmup_steps(args.max_steps) == 10 * epoch
        assert args.correspondence_start == 11 * epoch
        assert (args.base_learning_rate, args.weight_decay, args.weight_decay_end) == (5e-4, 0.04, 0.4)
        assert (args.clip_mode, args.max_grad_norm, args.teacher_momentum) == ("tensor", 3.0, 0.996)
        assert given.data.dataset != "scenes"
    args = make_training_arguments(parse_pretrain(["quickstart", "--max_steps=7", "--base_learning_rate", "none"]))
    assert (args.max_steps, args.base_learning_rate, args.output_dir) == (7, None, "geossl-quickstart")


@pytest.mark.parametrize(
    ("name", "trunk", "host", "split", "rate", "epoch", "epochs"),
    [
        ("equicoherent_ibot_small", (384, 12, 6), "ibot", (8192, 2048), 5e-4 * 1024 / 256, 1251, 800),
        ("equicoherent_dinov2_large", (1024, 24, 16), "dinov2", (2048, 512), 4e-3 * 2**0.5, 1250, 100),
        ("equicoherent_vicreg_small", (384, 12, 6), "vicreg", (512, 256), 1e-4 * 2048 / 256, 625, 800),
        ("dino_small_coco", (384, 12, 6), "dino", (8192, 2048), 5e-4 * 512 / 256, 231, 100),
    ],
)
def test_equicoherent_recipes_are_the_papers_settings(
    name: str, trunk: tuple[int, ...], host: str, split: tuple[int, int], rate: float, epoch: int, epochs: int
) -> None:
    batch = {"ibot": 1024, "dinov2": 2048, "vicreg": 2048, "dino": 512}[host]
    given = parse_pretrain([name, *ON_CPU, "--per_device_train_batch_size", str(batch)])
    config, args = make_config(given), make_training_arguments(given)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == trunk
    assert (config.host, config.patch_features, config.equivariant_features, config.split) == (host, *split, "feature")
    assert (config.patch_size, config.num_intermediate) == (16, 2)
    assert (config.transformation, config.num_decoders) == ((None, 0) if host == "dino" else ("se2", 2))
    assert args.scaled_learning_rate == pytest.approx(rate)
    assert args.max_steps == epoch * epochs
    assert args.get_warmup_steps(args.max_steps) == 10 * epoch
    assert args.weight_decay_end == (None if host == "vicreg" else 0.4)
    assert given.data.dataset != "scenes"
    shared = {"host": config.host, "transformation": config.transformation, "patch_size": config.patch_size}
    made = given.method.load("views")(**{**given.views, **shared})
    assert made.num_local == {"ibot": 10, "dinov2": 8, "vicreg": 0, "dino": 8}[host]
    if config.has_teacher:
        assert args.freeze_last_layer == epoch
        assert config.num_prototypes == {"ibot": 8192, "dinov2": 65536, "dino": 65536}[host]
        assert (args.teacher_momentum, args.max_grad_norm) == (0.992 if host == "dinov2" else 0.996, 3.0)
    if host == "dinov2":
        assert (args.layer_decay, args.patch_embed_learning_rate, config.layerscale_value) == (0.9, 0.2, 1e-5)


@pytest.mark.parametrize(("name", "width", "heads"), [("loca_base_imnet1k", 768, 12), ("loca_small_imnet1k", 384, 6)])
def test_loca_recipes_are_the_authors_configuration(name: str, width: int, heads: int) -> None:
    given = parse_pretrain([name, "--use_cpu", "true"])
    config, args, views = make_config(given), make_training_arguments(given), _views(given)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (width, 12, heads)
    assert (config.image_size, config.patch_size, config.drop_path_rate) == (224, 16, 0.1)
    assert (config.num_prototypes, config.num_kept_query_tokens, config.visible_reference_ratio) == (4096, 70, 0.2)
    assert (config.reference_selection, config.use_cluster_loss) == ("consecutive", True)
    assert (views.reference_size, views.focal_size, views.num_focal, views.blur) == (224, 96, 9, "off")
    assert "patch_size" not in given.views  # asked once, of the model
    assert (args.max_steps, args.get_warmup_steps(args.max_steps), args.save_steps) == (125100, 18765, 5000)
    assert args.per_device_train_batch_size * 8 == 1024
    assert args.base_learning_rate * 1024 / 256 == 1e-3
    assert (args.min_learning_rate, args.weight_decay, args.weight_decay_end) == (None, 0.1, None)
    assert (args.clip_mode, args.max_grad_norm, args.decay_attention_biases) == ("global", 1.0, True)
    assert (args.teacher_momentum, args.teacher_momentum_end, args.seed) == (0.996, 1.0, 42)
    assert not args.fp16
    assert not args.bf16
    assert (given.data.dataset, given.data.split) == ("ILSVRC/imagenet-1k", "train")


def test_a_key_of_another_section_is_refused() -> None:
    recipe = read_recipe("quickstart")
    moved = type(recipe)(recipe.source, recipe.name, recipe.method, (("data", "hidden_size", 3),))
    with pytest.raises(UsageError, match="quickstart: hidden_size belongs in section model, not in data"):
        moved.words(method_arguments("gtsa"))
