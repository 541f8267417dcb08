"""Threads, messages, memory and matrix rate of a run's process while it trains."""

import gc
import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training import sharding
from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.checkpoints.files import newest_whole_checkpoint
from hf_geossl.training.progress import ImagesProgressCallback

logger = logging.getLogger(__name__)

_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


class MatrixRate:
    """The share of a GPU's bfloat16 matrix rate that a run reaches; nothing for other devices.

    Both numbers behind it are made once, at the first batch of a call of `train`, without touching its random numbers or
    gradients: the operations of an image (see `count_operations`), and the rate of square products on this very GPU.
    """

    SIDE = 8192  # of the products

    def __init__(self, args: TeacherStudentTrainingArguments) -> None:
        self.args = args
        self.operations = self.rate = 0.0  # of an image, and a second; 0 where there is nothing to say

    def reset(self) -> None:
        """Starts a call of `train`."""
        self.operations = self.rate = 0.0
        self.pending = self.args.device.type == "cuda"

    def observe(self, model: TeacherStudentModel, inputs: Mapping[str, torch.Tensor | None]) -> None:
        """Measures with the first batch, on every process; FSDP2's parts of weights are no operands."""
        if not self.pending:
            return
        self.pending = False
        if sharding.is_sharded(model):
            return
        try:
            with torch.autocast(self.args.device.type, torch.bfloat16):
                operations = count_operations(model, inputs)
            self.operations, self.rate = operations, square_product_rate(self.args.device, self.SIDE)
        # too little memory, an operation that nobody has a formula for, or images that are too few without other processes'
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            logger.warning(f"the log has no share of the matrix rate: {reason}")

    def describe(self, images_per_second: float) -> dict[str, float]:
        """The share of the rate of all processes' GPUs, in [0, 1], as `matrix_rate_share`."""
        if not self.rate:
            return {}
        return {"matrix_rate_share": images_per_second * self.operations / (self.rate * self.args.world_size)}


def count_operations(model: TeacherStudentModel, inputs: Mapping[str, torch.Tensor | None], images: int = 16) -> float:
    """Counts the floating-point operations of products in a forward and backward pass, by image of a batch.

    A multiplication and an addition are two. Counted once is what has to be computed: layers without the second pass of
    gradient checkpointing, attention as its four products. The first `images` of the batch are computed eagerly for it,
    each process alone; random numbers, gradients and what the model accumulates stay as they are.

    Args:
        model: The model, at the beginning of an optimizer step.
        inputs: Its inputs. Tensors of two dimensions or more have an image a row; those of one are of the whole batch and
            left out, for the model makes them itself where they are missing.
        images: How many images to compute.
    """
    few = {
        name: value[:images] if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
        if not isinstance(value, torch.Tensor) or value.ndim > 1
    }
    rows = len(next(value for value in few.values() if isinstance(value, torch.Tensor)))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trained[0].device
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    modes = [(module, module.training) for layer in layers if layer.training for module in layer.modules()]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled products are not seen by the counter
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # a process whose memory ends here would leave the others waiting for its part of an exchange
        stack.enter_context(patch.object(torch.distributed, "is_initialized", lambda: False))
        counter = stack.enter_context(FlopCounterMode(display=False))
        try:
            for layer in layers:
                layer.eval()  # computes nothing twice
            torch.autograd.grad(model(**few)["loss"], trained, allow_unused=True)
        finally:
            for module, mode in modes:  # parents first
                module.train(mode)
            model.reset_accumulated()
    return counter.get_total_flops() / rows


def square_product_rate(device: torch.device, side: int, repeats: int = 8) -> float:
    """Floating-point operations a second of square bfloat16 products on a GPU: the fastest of a few."""
    generator = torch.Generator(device).manual_seed(0)
    first, second = (torch.randn(side, side, generator=generator, device=device, dtype=torch.bfloat16) for _ in "ab")
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    for event in events:
        event.record(torch.cuda.current_stream(device))
        first @ second
    torch.cuda.synchronize(device)
    fastest = min(start.elapsed_time(end) for start, end in itertools.pairwise(events))  # milliseconds
    del first, second
    torch.cuda.reset_peak_memory_stats(device)  # these operands are not the run's
    return 2 * side**3 / (fastest / 1000)


@contextmanager
def explained_out_of_memory(args: TeacherStudentTrainingArguments) -> Iterator[None]:
    """Says in a sentence what a run can do that does not fit its memory.

    Raises:
        torch.OutOfMemoryError: In the place of PyTorch's own, from which it comes.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(describe_out_of_memory(args)) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or _CPU_ALLOCATOR in str(error)


def fit_memory(
    compute: Callable[[], torch.Tensor],
    model: TeacherStudentModel,
    args: TeacherStudentTrainingArguments,
    forget: Callable[[], None],
) -> torch.Tensor:
    """Computes loss and gradients; where they do not fit the memory, again with gradient checkpointing, which stays on.

    It is for the first micro-batch of a step of a single process, where all that a pass leaves behind can be taken back:
    the result is that of more memory, to the bit.

    Args:
        compute: Makes the loss `()`, and gradients where there were none.
        model: The model.
        args: Its `gradient_checkpointing` becomes True then, which checkpoints' arguments and the card say too.
        forget: Drops what the pass has counted.
    """
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return compute()
    on_gpu = args.device.type == "cuda"
    states = torch.get_rng_state(), torch.cuda.get_rng_state(args.device) if on_gpu else None
    try:
        return compute()
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
    # what the pass has computed goes with its error, which is gone here
    model.zero_grad(set_to_none=True)
    forget()
    gc.collect()
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.empty_cache()
        torch.cuda.set_rng_state(states[1], args.device)
    model.gradient_checkpointing_enable(args.recompute_layers())
    logger.warning(
        f"a batch of {args.per_device_train_batch_size} images does not fit the memory of {args.device}: layers are computed "
        "twice from here on, for the same result in less memory and more time (gradient_checkpointing)"
    )
    return compute()


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
def training_context(args: TeacherStudentTrainingArguments, callbacks: Iterable[object] = ()) -> Iterator[None]:
    """Threads for a run on a CPU, log messages that do not tear its progress bar, and a sentence where memory runs out.

    The bar among its `callbacks` is closed in the end, however that comes: what is said then has a line of its own.
    """
    with ExitStack() as stack:
        for callback in callbacks:
            if isinstance(callback, ImagesProgressCallback):
                stack.callback(callback.close)
        stack.enter_context(explained_out_of_memory(args))
        if args.device.type == "cpu":
            stack.enter_context(cpu_threads(args.dataloader_num_workers))
        if not args.disable_tqdm and args.process_index == 0:
            loggers = [logging.getLogger(name) for name in (None, "transformers", "datasets", "huggingface_hub")]
            stack.enter_context(logging_redirect_tqdm(loggers=loggers))
        stack.enter_context(warnings.catch_warnings())
        # outputs of FSDP2's modules are views here and there, and nothing changes them in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        cores, workers = _cores(), args.dataloader_num_workers
        if workers > cores:  # a recipe for a larger machine; the order of images depends on it, so it is not changed
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            logger.warning(
                f"{workers} processes read images, and there {'is 1 core' if cores == 1 else f'are {cores} cores'}: "
                f"--dataloader_num_workers {cores} is enough"
            )
        yield
