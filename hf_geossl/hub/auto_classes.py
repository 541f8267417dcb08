"""Registration with transformers' Auto classes, no earlier than they are used.

Importing torch, transformers' Auto classes and the models takes seconds, and `import hf_geossl` must not. Configurations and image
processors are registered right after transformers' module of them has been imported, by whoever and in whatever thread; where
it has been imported already, at once. Models cannot be registered while transformers' own module of models is being imported,
for their files import it too, and two threads would wait for each other; they are registered before the first configuration is
made, and without one no Auto class finds a model.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from threading import RLock
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from wrapt import when_imported

from hf_geossl.methods import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_LOCK = RLock()
_REGISTERED: set[str] = set()


def auto_map_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Gives the `auto_map` that belongs into a `config.json`: Auto class -> `"module.Class"`.

    Weights of a `...ForPreTraining` class come with the code of pretraining, all others without.
    """
    pretrains = (config.get("architectures") or [""])[0].endswith("ForPreTraining")
    return dict(METHODS[config["model_type"]].load("pretraining" if pretrains else "model").auto_map)


def register_auto_classes() -> None:
    """Makes every Auto class of transformers open this library's models; called on `import hf_geossl`."""
    when_imported("transformers.models.auto.configuration_auto")(_register_configurations)
    when_imported("transformers.models.auto.image_processing_auto")(_register_image_processors)
    when_imported("hf_geossl.modeling.configuration_vit")(_register_models_before_use)


def _configurations() -> "Iterator[type[PreTrainedConfig]]":
    for method in METHODS.values():
        yield method.load("config")


def _register_configurations(module: ModuleType) -> None:
    module = import_module(module.__name__)  # waits where another thread is importing it
    for config_class in _configurations():
        module.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def _register_image_processors(module: ModuleType) -> None:
    module = import_module(module.__name__)
    from transformers import ViTImageProcessor
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    # for folders whose processor has no name; not that of `make_image_processor`, whose own import may have brought us here
    processors = {"pil": ViTImageProcessorPil, "torchvision": ViTImageProcessor}
    for config_class in _configurations():
        module.AutoImageProcessor.register(config_class, image_processor_classes=processors, exist_ok=True)
    from hf_geossl.modeling.configuration_vit import GeometricViTConfig
    from hf_geossl.modeling.image_processing_vit import GeometricImageProcessor

    # by the base class, which no model has: transformers looks for a processor's name among those of one entry
    own = {"pil": GeometricImageProcessor, "torchvision": GeometricImageProcessor}
    module.AutoImageProcessor.register(GeometricViTConfig, image_processor_classes=own, exist_ok=True)


def _register_models_before_use(module: ModuleType) -> None:
    module.GeometricViTConfig.before_use.append(register_models)


def register_models() -> None:
    """Registers every class that the `auto_map` of a method's pretraining class names; a method that is registered already costs nothing."""
    if METHODS.keys() <= _REGISTERED:
        return
    with _LOCK:  # another thread that makes a configuration meanwhile waits until all are there
        import transformers

        for name in METHODS.keys() - _REGISTERED:
            config_class, model_class = METHODS[name].load("config"), METHODS[name].load("pretraining")
            package = model_class.__module__.rpartition(".")[0]
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
