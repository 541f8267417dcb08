"""Registration with transformers' Auto classes: by `model_type`, and as code that travels with saved weights."""

from importlib import import_module
from typing import Any

import transformers
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, ViTImageProcessor
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_geossl.methods import METHODS, Method


def auto_map_of(model_type: str) -> dict[str, str]:
    """The whole `auto_map` of a method's models: Auto class -> `"module.Class"`."""
    return dict(METHODS[model_type].load("model").auto_map)


def register_method(method: Method) -> None:
    """Registers a method's configuration and every class that its models' `auto_map` names."""
    config_class, model_class = method.load("config"), method.load("model")
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    config_class.register_for_auto_class("AutoConfig")
    processors: dict[str, type] = {"pil": ViTImageProcessorPil, "torchvision": ViTImageProcessor}
    AutoImageProcessor.register(config_class, image_processor_classes=processors, exist_ok=True)
    package = model_class.__module__.rpartition(".")[0]
    for auto_name, reference in model_class.auto_map.items():
        if auto_name == "AutoConfig":
            continue
        module, _, name = reference.partition(".")
        registered = getattr(import_module(f"{package}.{module}"), name)
        getattr(transformers, auto_name).register(config_class, registered, exist_ok=True)
        registered.register_for_auto_class(auto_name)


def register_auto_classes() -> None:
    """Makes every Auto class of transformers open this library's models; called on `import hf_geossl`."""
    for method in METHODS.values():
        register_method(method)


def load_backbone(path: str, **kwargs: Any) -> Any:
    """`AutoBackbone.from_pretrained` for local folders too (transformers 5 asks the Hub for every path).

    Args:
        path (`str`): A folder, or a Hub repository.
        **kwargs: As `from_pretrained`, such as `out_indices=[2, 5, 8, 11]`.

    Returns:
        The backbone, in eval mode.
    """
    open_path: Any = _BaseAutoModelClass.from_pretrained
    return open_path.__func__(AutoBackbone, path, **kwargs)
