"""Threads, messages and memory of a run's process while it trains."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.checkpoints.files import newest_whole_checkpoint

_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"


@contextmanager
def cpu_threads(num_workers: int) -> Iterator[None]:
    """Leaves the data loader's workers a core each; threads that contend for a core slow each other down many times over."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) - num_workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most memory that tensors of this process have taken on a GPU, as `memory_mb`; nothing for other devices."""
    if device.type != "cuda":
        return {}
    return {"memory_mb": round(torch.cuda.max_memory_allocated(device) / 2**20)}


@contextmanager
def explained_out_of_memory(args: TeacherStudentTrainingArguments) -> Iterator[None]:
    """Says in a sentence what a run can do that does not fit its memory.

    Raises:
        torch.OutOfMemoryError: In the place of PyTorch's own, from which it comes.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and _CPU_ALLOCATOR not in str(error):
            raise
        raise torch.OutOfMemoryError(describe_out_of_memory(args)) from error


def describe_out_of_memory(args: TeacherStudentTrainingArguments) -> str:
    """What takes less memory, by the arguments' names, beginning with what changes nothing else."""
    size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    checkpoint = newest_whole_checkpoint(args.output_dir or ".")
    goes_on = ", and --resume_from_checkpoint true goes on from there" if checkpoint else ""
    mends = []
    if not args.gradient_checkpointing:
        mends.append(f"--gradient_checkpointing true computes layers twice for the same result{goes_on}")
    if args.mixed_precision == "no" and args.device.type == "cuda":
        mends.append("--bf16 true halves what layers keep")
    divisor = next((number for number in range(2, size + 1) if size % number == 0), None)
    if divisor:
        mends.append(
            f"--per_device_train_batch_size {size // divisor} --gradient_accumulation_steps {accumulation * divisor} starts "
            f"a run of the same {args.global_batch_size} images a step"
        )
    mends.append("smaller views or a smaller model take less too")
    saved = f"{checkpoint.name} is whole" if checkpoint else "no checkpoint has been saved"
    return f"a batch of {size} images does not fit the memory of {args.device} ({saved}): {'; '.join(mends)}"


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
