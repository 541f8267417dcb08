"""Functions that are compiled when they are first called, and go on plainly where the compiler fails."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

logger = logging.getLogger(__name__)


class CompiledFunction:
    """A function compiled once for all sizes of its tensors; where the compiler fails it is called as it is, after one line.

    Args:
        function (`Callable`): The function, which leaves its arguments as they are.
        name (`str`): What it computes, in the plural, for that line.
        options: Those of `torch.compile`.

    Attributes:
        is_plain (`bool`): Whether the function is called as it is.
    """

    def __init__(self, function: Callable[..., torch.Tensor], name: str, **options: Any) -> None:
        self.function, self.name, self.options, self.is_plain = function, name, options, False
        self._compiled: Callable[..., torch.Tensor] | None = (
            None  # to begin with: it takes a second to import the compiler
        )

    def __call__(self, *args: object, **kwargs: object) -> torch.Tensor:
        """The function's value."""
        if self.is_plain:
            return self.function(*args, **kwargs)
        try:
            if self._compiled is None:
                self._compiled = torch.compile(self.function, dynamic=True, **self.options)
            return self._compiled(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        # not all there are: gradient checkpointing ends its second pass by one of its own
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError, ImportError, OSError) as error:
            result = self.function(*args, **kwargs)  # which raises itself what is no fault of the compiler
            self.is_plain = True
            reason = " ".join(str(error).strip().partition("\n\n")[0].split())[
                :200
            ]  # advice on debugging comes after it
            logger.warning(
                f"{self.name} are not compiled, the compiler failed ({type(error).__name__}: {reason}): the run goes on "
                "without, with the same result and slower; --torch_compile false leaves the compiler out"
            )
            return result

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Leaves the compiler out inside of it."""
        before, self.is_plain = self.is_plain, True
        try:
            yield
        finally:
            self.is_plain = before
