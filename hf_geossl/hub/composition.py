"""Configurations of UperNet, DPT and Mask2Former over a backbone of this library, whose folders open without it.

transformers looks a nested `backbone_config` up among the models that it knows, and reads no code for it. The folders of these
models therefore carry this file, which imports nothing of the package, and the code of the backbone. They have a `model_type` of
their own, so that whoever saves such a model again, with the package or without it, saves the code too.
"""

from importlib import import_module
from os import PathLike
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.dpt import configuration_dpt
from transformers.models.mask2former import configuration_mask2former
from transformers.models.upernet import configuration_upernet


class ComposedConfig(PreTrainedConfig):
    """A configuration whose `backbone_config` is read, and saved, with the code of its backbone."""

    _auto_class: ClassVar[str | None] = "AutoConfig"  # saving takes this file along
    takes_feature_maps: ClassVar[bool] = True  # otherwise tokens: `reshape_hidden_states=False`

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As transformers'; `backbone_config` is a configuration already, of the package or else of the folder's code."""
        values, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        backbone = values.get("backbone_config") or {}
        if "auto_map" in backbone and backbone["model_type"] not in CONFIG_MAPPING:
            reference = backbone["auto_map"]["AutoBackbone"]
            from transformers import AutoBackbone  # not there yet where the package registers this file's classes

            code: Any = get_class_from_dynamic_module(reference, pretrained_model_name_or_path, **kwargs)
            AutoBackbone.register(code.config_class, code, exist_ok=True)
            values["backbone_config"] = code.config_class.from_dict(backbone)
        return values, unused

    def save_pretrained(self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: object) -> None:
        """As transformers', with the code of the backbone."""
        backbone: Any = getattr(self, "backbone_config", None)
        if hasattr(backbone, "auto_map"):
            package = type(backbone).__module__.rpartition(".")[0]
            module, _, name = backbone.auto_map["AutoBackbone"].partition(".")
            custom_object_save(getattr(import_module(f"{package}.{module}"), name), save_directory)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


# transformers finds the model of a configuration by the name of its class
@strict
class UperNetConfig(ComposedConfig, configuration_upernet.UperNetConfig):
    """transformers' UperNet over a backbone of this library."""

    model_type = "geossl_upernet"


@strict
class DPTConfig(ComposedConfig, configuration_dpt.DPTConfig):
    """transformers' DPT over a backbone of this library."""

    model_type = "geossl_dpt"
    takes_feature_maps = False


@strict
class Mask2FormerConfig(ComposedConfig, configuration_mask2former.Mask2FormerConfig):
    """transformers' Mask2Former over a backbone of this library."""

    model_type = "geossl_mask2former"


COMPOSED: dict[str, type[ComposedConfig]] = {
    config.__name__: config for config in (UperNetConfig, DPTConfig, Mask2FormerConfig)
}
