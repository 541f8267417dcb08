"""Registration with transformers' Auto classes, no earlier than they are used.

Importing torch, transformers' Auto classes and the models takes seconds, and `import hf_geossl` must not. Configurations and image
processors are registered right after transformers' module of them has been imported, by whoever and in whatever thread; where
it has been imported already, at once. Models cannot be registered while transformers' own module of models is being imported,
for their files import it too, and two threads would wait for each other; they are registered before the first configuration is
made, and without one no Auto class finds a model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from os import PathLike, fspath
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from wrapt import when_imported, wrap_function_wrapper

from hf_geossl.methods import METHODS, WRAPPER

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_LOCK = RLock()
_REGISTERED: set[str] = set()


def trunk_class(model_type: str) -> Any:
    """The class of the trunks of a `model_type`, whose `auto_map` names those with a head; its module is imported."""
    if model_type == WRAPPER:
        from hf_geossl.modeling.modeling_vit_wrapper import ViTWrapperModel

        return ViTWrapperModel
    return METHODS[model_type].load("model")


def auto_map_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Gives the `auto_map` that belongs into a `config.json`: Auto class -> `"module.Class"`.

    Weights of a `...ForPreTraining` class come with the code of pretraining, all others without.
    """
    pretrains = (config.get("architectures") or [""])[0].endswith("ForPreTraining")
    model_type = config["model_type"]
    return dict((METHODS[model_type].load("pretraining") if pretrains else trunk_class(model_type)).auto_map)


def register_auto_classes() -> None:
    """Makes every Auto class of transformers open this library's models; called on `import hf_geossl`."""
    when_imported("transformers.models.auto.configuration_auto")(_register_configurations)
    when_imported("transformers.models.auto.image_processing_auto")(_register_image_processors)
    when_imported("transformers.models.auto.modeling_auto")(_open_local_backbones)
    when_imported("hf_geossl.modeling.configuration_vit")(_register_models_before_use)


def _configurations() -> "Iterator[type[PreTrainedConfig]]":
    from hf_geossl.modeling.configuration_vit import ViTWrapperConfig

    for method in METHODS.values():
        yield method.load("config")
    yield ViTWrapperConfig


def _register_configurations(module: ModuleType) -> None:
    module = import_module(module.__name__)  # waits where another thread is importing it
    for config_class in _configurations():
        module.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    from transformers.configuration_utils import PreTrainedConfig

    class LazyComposedConfig(PreTrainedConfig):
        """Opens a composed model's configuration, whose class needs transformers' models: they may be about to be imported."""

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: object) -> Any:
            from hf_geossl.hub.composition import COMPOSED

            classes = {config.model_type: config for config in COMPOSED.values()}
            return classes[config_dict["model_type"]].from_dict(config_dict, **kwargs)

    for model_type in ("geossl_upernet", "geossl_dpt", "geossl_mask2former"):
        lazy = type(LazyComposedConfig.__name__, (LazyComposedConfig,), {"model_type": model_type})
        module.AutoConfig.register(model_type, lazy, exist_ok=True)


def _register_image_processors(module: ModuleType) -> None:
    module = import_module(module.__name__)
    from transformers import ViTImageProcessor
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    # for folders whose processor has no name; not that of `make_image_processor`, whose own import may have brought us here
    processors = {"pil": ViTImageProcessorPil, "torchvision": ViTImageProcessor}
    for config_class in _configurations():
        module.AutoImageProcessor.register(config_class, image_processor_classes=processors, exist_ok=True)
    from hf_geossl.modeling.configuration_vit import ViTHeadConfig
    from hf_geossl.modeling.image_processing_vit import GeometricImageProcessor

    # by the base class, which no model has: transformers looks for a processor's name among those of one entry
    own = {"pil": GeometricImageProcessor, "torchvision": GeometricImageProcessor}
    module.AutoImageProcessor.register(ViTHeadConfig, image_processor_classes=own, exist_ok=True)


def _open_local_backbones(module: ModuleType) -> None:
    """Lets `AutoBackbone.from_pretrained` open folders too: transformers 5 asks the Hub for every path."""

    def from_pretrained(wrapped: Callable, owner: object, args: tuple, kwargs: dict[str, Any]) -> "PreTrainedModel":
        path = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        if isinstance(path, str | PathLike) and Path(path, "config.json").is_file():
            kwargs.pop("pretrained_model_name_or_path", None)
            return load_backbone(fspath(path), *args[1:], **kwargs)
        return cast("PreTrainedModel", wrapped(*args, **kwargs))

    wrap_function_wrapper(module, "AutoBackbone.from_pretrained", from_pretrained)


def _register_models_before_use(module: ModuleType) -> None:
    module.ViTHeadConfig.before_use.append(register_models)


def register_models() -> None:
    """Registers every class that the `auto_map` of a method's pretraining class names; a method that is registered already costs nothing."""
    names = {*METHODS, WRAPPER}
    if names <= _REGISTERED:
        return
    with _LOCK:  # another thread that makes a configuration meanwhile waits until all are there
        import transformers

        for name in sorted(names - _REGISTERED):
            model_class = METHODS[name].load("pretraining") if name in METHODS else trunk_class(name)
            package = model_class.__module__.rpartition(".")[0]
            home, _, class_name = model_class.auto_map["AutoConfig"].partition(".")
            config_class = getattr(import_module(f"{package}.{home}"), class_name)
            for auto_name, reference in model_class.auto_map.items():
                if auto_name != "AutoConfig":
                    home, _, class_name = reference.partition(".")
                    registered = getattr(import_module(f"{package}.{home}"), class_name)
                    getattr(transformers, auto_name).register(config_class, registered, exist_ok=True)
            _REGISTERED.add(name)


def load_backbone(path: str, **kwargs: object) -> "PreTrainedModel":
    """`AutoBackbone.from_pretrained` for local folders too (transformers 5 asks the Hub for every path).

    Args:
        path (`str`): A folder, or a Hub repository.
        **kwargs: As `from_pretrained`, such as `out_indices=[2, 5, 8, 11]`.

    Returns:
        `PreTrainedModel`: The backbone, in eval mode.
    """
    from transformers import AutoBackbone
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    opened = _BaseAutoModelClass.from_pretrained.__func__(AutoBackbone, path, **kwargs)  # type: ignore[attr-defined]
    return cast("PreTrainedModel", opened)


def compose_model(
    model_class: "type[PreTrainedModel]",
    backbone: str,
    out_indices: Sequence[int] | None = None,
    config: "PreTrainedConfig | None" = None,
    **fields: object,
) -> "PreTrainedModel":
    """Makes UperNet, DPT or Mask2Former over a trained trunk; what `save_pretrained` writes opens without this package too.

    Args:
        model_class (`type`): transformers' class, such as `UperNetForSemanticSegmentation`.
        backbone (`str`): Folder or Hub repository of the trunk.
        out_indices (`Sequence[int]`, *optional*): Layers whose features the model takes; four evenly spaced ones if absent,
            of three layers the embeddings' too.
        config (`PreTrainedConfig`, *optional*): The model's own settings, without a `backbone_config`.
        **fields: Settings of the model by name, such as `num_labels=150`, which replace those of `config`.

    Returns:
        `PreTrainedModel`: The model, in eval mode: the trunk with its weights, the rest with random ones.

    Raises:
        ValueError: If the model is none of the three, or the trunk has fewer layers than it takes.
    """
    import torch

    from hf_geossl.hub.composition import COMPOSED

    name = getattr(getattr(model_class, "config_class", None), "__name__", "")
    if name not in COMPOSED:
        known = ", ".join(sorted(COMPOSED))
        raise ValueError(f"model_class must be a model of {known}, got {model_class.__name__}")
    trunk = load_backbone(backbone, reshape_hidden_states=COMPOSED[name].takes_feature_maps)
    layers = trunk.config.num_hidden_layers
    chosen = out_indices or (range(layers + 1) if layers < 4 else [layers * part // 4 for part in range(1, 5)])
    if not out_indices and len(chosen) < 4:
        raise ValueError(
            f"{model_class.__name__} takes the features of four layers, and the trunk has {layers}: give out_indices, or a "
            "trunk of three layers or more"
        )
    trunk.config.set_output_features_output_indices(out_features=None, out_indices=list(chosen))
    values = {} if config is None else config.to_diff_dict()
    composed = COMPOSED[name](
        **{**values, **fields, "model_type": COMPOSED[name].model_type, "backbone_config": trunk.config}
    )
    with torch.device("meta"):  # only to see where the model has its backbone
        parts = model_class(composed).named_modules()
    place = next(name for name, part in parts if isinstance(part, type(trunk)))
    state = {f"{place}.{key}": value for key, value in trunk.state_dict().items()}
    return model_class.from_pretrained(None, config=composed, state_dict=state)
