"""Refuses a model or views of another method, before anything is read off them."""

from typing import Any


def check_model(model: Any, expected: Any) -> None:
    """Args:
        model: What a trainer has been given; None where `model_init` will make it.
        expected (`type`): The method's pretraining class. One that came with a folder, of the same `model_type`, will do.

    Raises:
        TypeError: If the model is another method's.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if model is not None and kind != expected.config_class.model_type:
        raise TypeError(
            f"model must be of {expected.__name__}, got {type(model).__name__}; each method has a trainer of its own"
        )


def check_views_class(views: Any, expected: type) -> None:
    """Args:
        views: What a trainer has been given.
        expected (`type`): The method's views.

    Raises:
        TypeError: If the views are another method's.
    """
    if not isinstance(views, expected):
        raise TypeError(
            f"views must be {expected.__name__}, got {type(views).__name__}; leave them out for those that fit the model"
        )
