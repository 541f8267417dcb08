"""Registration with transformers' Auto classes: by `model_type`, and as code that travels with saved weights."""

from typing import Any

import transformers
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, ViTImageProcessor
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_geossl.modeling import (
    modeling_equicoherent,
    modeling_gtsa,
    modeling_loca,
    pretraining_equicoherent,
    pretraining_gtsa,
    pretraining_loca,
)
from hf_geossl.modeling.configuration_equicoherent import EquiCoherentConfig
from hf_geossl.modeling.configuration_gtsa import GTSAConfig
from hf_geossl.modeling.configuration_loca import LOCAConfig

_AUTO_MAPS: dict[str, dict[str, str]] = {}


def auto_map_of(model_type: str) -> dict[str, str]:
    """The whole `auto_map` of a method's models: Auto class -> `"module.Class"`."""
    return dict(_AUTO_MAPS[model_type])


def _register(config_class: Any, *modules: Any) -> None:
    """Registers a configuration and every class that its models' `_auto_map` names."""
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    config_class.register_for_auto_class("AutoConfig")
    processors: dict[str, type] = {"pil": ViTImageProcessorPil, "torchvision": ViTImageProcessor}
    AutoImageProcessor.register(config_class, image_processor_classes=processors, exist_ok=True)
    by_name = {name: getattr(module, name) for module in modules for name in module.__all__}
    base = next(cls for cls in by_name.values() if getattr(cls, "_auto_map", None))
    _AUTO_MAPS[config_class.model_type] = base._auto_map
    for auto_name, reference in base._auto_map.items():
        if auto_name == "AutoConfig":
            continue
        model_class = by_name[reference.partition(".")[2]]
        getattr(transformers, auto_name).register(config_class, model_class, exist_ok=True)
        model_class.register_for_auto_class(auto_name)


def register_auto_classes() -> None:
    """Makes every Auto class of transformers open this library's models; called on `import hf_geossl`."""
    _register(GTSAConfig, modeling_gtsa, pretraining_gtsa)
    _register(LOCAConfig, modeling_loca, pretraining_loca)
    _register(EquiCoherentConfig, modeling_equicoherent, pretraining_equicoherent)


def load_backbone(path: str, **kwargs: Any) -> Any:
    """
    `AutoBackbone.from_pretrained` for local folders too (transformers 5 asks the Hub for every path).

    Args:
        path (`str`): A folder, or a Hub repository.
        **kwargs: As `from_pretrained`, such as `out_indices=[2, 5, 8, 11]`.

    Returns:
        The backbone, in eval mode.
    """
    open_path: Any = _BaseAutoModelClass.from_pretrained
    return open_path.__func__(AutoBackbone, path, **kwargs)
