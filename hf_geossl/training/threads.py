"""What a run changes in its process while it trains, and gives back."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.memory import explained_out_of_memory


@contextmanager
def cpu_threads(num_workers: int) -> Iterator[None]:
    """Leaves the data loader's workers a core each; threads that contend for a core slow each other down many times over."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) - num_workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def training_context(args: TeacherStudentTrainingArguments) -> Iterator[None]:
    """Threads for a run on a CPU, log messages that do not tear its progress bar, and a sentence where memory runs out."""
    with ExitStack() as stack:
        stack.enter_context(explained_out_of_memory(args))
        if args.device.type == "cpu":
            stack.enter_context(cpu_threads(args.dataloader_num_workers))
        if not args.disable_tqdm and args.process_index == 0:
            loggers = [logging.getLogger(name) for name in (None, "transformers", "datasets", "huggingface_hub")]
            stack.enter_context(logging_redirect_tqdm(loggers=loggers))
        stack.enter_context(warnings.catch_warnings())
        # outputs of FSDP2's modules are views here and there, and nothing changes them in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        yield
