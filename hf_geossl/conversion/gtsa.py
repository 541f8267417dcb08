"""Checkpoints of the GTSA authors' program in."""

import re
from collections.abc import Mapping
from pathlib import Path

from hf_geossl.conversion.checkpoint_file import State, load_strictly, part_of, read_torch_file, tensors_of
from hf_geossl.conversion.families.blocks import DINO, NAMING
from hf_geossl.conversion.families.names import to_trunk
from hf_geossl.conversion.trunk_weights import given_fields, make_config, read_trunk, say_left_out
from hf_geossl.modeling.configuration_gtsa import GTSAConfig
from hf_geossl.modeling.pretraining_gtsa import GTSAForPreTraining

_ROTATION_KEYS = {
    "0": "linears.0",
    "1": "norms.0",
    "3": "linears.1",
    "4": "norms.1",
    "6": "linears.2",
    "7": "norms.2",
    "8": "classifier",
}


def _head_widths(state: State, name: str) -> dict[str, int | tuple[int, ...]]:
    """Reads the configuration of the heads off a full checkpoint."""

    def width(key: str) -> int:
        if key not in state:
            raise ValueError(f"{name} is no full GTSA checkpoint: it lacks {key}")
        return state[key].shape[0]

    return {
        "projector_hidden_size": width("base_projector.blocks.0.0.weight"),
        "projection_size": width("base_projector.proj.weight"),
        "predictor_hidden_size": width("base_predictor.blocks.0.0.weight"),
        "rotation_hidden_sizes": tuple(width(f"rot_predictor.{index}.weight") for index in (0, 3, 6)),
    }


def _rename_all(state: State) -> State:
    """Gives the weights of a full checkpoint our names."""
    renamed: State = {}
    for prefix, target in (("base_encoder.", "gtsa."), ("momentum_encoder.", "teacher.gtsa.")):
        trunk, unknown = to_trunk(part_of(state, prefix), NAMING.table)
        renamed |= {target + key: value for key, value in trunk.items()} | {
            prefix + key: state[prefix + key] for key in unknown
        }
    for prefix, target in (("base_projector.", "projector."), ("momentum_projector.", "teacher.projector.")):
        for key, value in part_of(state, prefix).items():
            key = re.sub(r"^blocks\.(\d)\.0\.", r"blocks.\1.convolution.", key)
            renamed[target + re.sub(r"^proj\.", "projection.", key)] = value.float()
    for key, value in part_of(state, "base_predictor.").items():
        key = re.sub(r"^blocks\.0\.0\.", "block.convolution.", key)
        renamed["predictor." + re.sub(r"^proj\.", "projection.", key)] = value.float()
    for key, value in part_of(state, "rot_predictor.").items():
        index, _, rest = key.partition(".")
        renamed[f"rotation_head.{_ROTATION_KEYS.get(index, index)}.{rest}"] = value.float()
    return renamed


def convert_gtsa_checkpoint(path: str | Path, config: GTSAConfig | None = None) -> GTSAForPreTraining:
    """Reads a checkpoint of the GTSA authors' program.

    Args:
        path (`str` or `Path`): A full training checkpoint (`checkpoint-99.pth`) or a flat trunk (ViT keys at the top
            or under `model`). A flat trunk gives a teacher equal to the student, and fresh heads.
        config (`GTSAConfig`, *optional*): What shapes do not say, such as `num_attention_heads` (by default one for each
            64 channels). Where both say something, the shapes win. It is not changed.

    Returns:
        `GTSAForPreTraining` in eval mode, float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds anything but tensors and plain data, or another model, or if the number of heads
            is neither given nor to be derived.

    Source: spec of the authors' files, section 2.8; nothing in the file is executed.
    """
    name = Path(path).name
    content = read_torch_file(path)
    state = tensors_of(content["model"] if isinstance(content.get("model"), Mapping) else content, name)
    full = any(key.startswith("base_encoder.") for key in state)
    trunk = read_trunk(
        part_of(state, "base_encoder.") if full else state, name, families=(DINO,), hints=given_fields(config)
    )
    if not full:
        model = GTSAForPreTraining(make_config(GTSAConfig, trunk, config))
        load_strictly(model.gtsa, trunk.state, name)
        say_left_out(trunk)
        model.copy_student_to_teacher()
        return model.eval()
    widths = _head_widths(state, name)
    model = GTSAForPreTraining(GTSAConfig(**{**make_config(GTSAConfig, trunk, config).to_dict(), **widths}))
    load_strictly(model, _rename_all(state), name)
    return model.eval()
