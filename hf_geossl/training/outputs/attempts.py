"""Steps after the model is saved: what fails there is a warning, never the loss of what was trained."""

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)


def attempt(subject: str, action: Callable[..., object], remedy: str, *args: object, **kwargs: object) -> bool:
    """Does something that a trained model does not depend on.

    Args:
        subject (`str`): What is made, for the warning: "the model card".
        action (`Callable`): Makes it; called with the other arguments.
        remedy (`str`): What to do where it fails.

    Returns:
        `bool`: Whether it was made. If not, one warning has said why.
    """
    try:
        action(*args, **kwargs)
    except Exception as error:  # whatever it is: weights and configuration are on the disk
        reason = " ".join(str(error).split()) or "no reason given"
        logger.warning(f"{subject} could not be made ({type(error).__name__}: {reason}): {remedy}")
        return False
    return True
