"""Memory of the device: how much a run has taken, and what to do where it is not enough."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.checkpoints.files import newest_whole_checkpoint

_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"


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
