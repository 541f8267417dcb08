"""Refuses a model or views of another method, before anything is read off them."""

from hf_geossl.methods import Method


def check_method(method: Method, model: object, views: object) -> None:
    """Raises a TypeError for another method's model or views; any class of the same `model_type` will do."""
    check_model(method, model)
    expected = method.load("views")
    if not isinstance(views, expected):
        raise TypeError(
            f"views must be {expected.__name__}, got {type(views).__name__}; leave them out for those that fit the model"
        )


def check_model(method: Method, model: object) -> None:
    """Checks that a model is of a method; see `check_method`."""
    if getattr(getattr(model, "config", None), "model_type", None) != method.name:
        raise TypeError(
            f"model must be of {method.load('pretraining').__name__}, got {type(model).__name__}; each method has a "
            "trainer of its own"
        )
