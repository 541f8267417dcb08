"""Steps after the model is saved: what fails there is a warning, never the loss of what was trained."""

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)


def attempt(subject: str, action: Callable[..., object], remedy: str, *args: object, **kwargs: object) -> bool:
    """Does what a trained model does not depend on; where it fails, warns with the `remedy` and returns False."""
    try:
        action(*args, **kwargs)
    except Exception as error:  # whatever it is: weights and configuration are on the disk
        reason = " ".join(str(error).split()) or "no reason given"
        logger.warning(f"{subject} could not be made ({type(error).__name__}: {reason}): {remedy}")
        return False
    return True
