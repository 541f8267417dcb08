"""`ShardedTrainer`: transformers' Trainer with one layout of checkpoints, whether weights are divided (FSDP2) or not."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from hf_geossl.modeling.modeling_vit import ViTLayer
from hf_geossl.training.checkpointing import CheckpointError
from hf_geossl.training.sharding import (
    broadcast_state,
    gather_optimizer_state,
    is_sharded,
    load_optimizer_state,
    load_state,
    read_state,
    whole_copy,
)


class ShardedTrainer(Trainer):
    """What a run does differently where its weights are divided among processes; the rest is `StreamTrainer`'s.

    A checkpoint holds `model.safetensors`, whole, and `optimizer.pt`, whole and by the names of the parameters, so that
    one process, DDP and FSDP2 read each other's. Both are gathered tensor by tensor to the first process's CPU.
    """

    model: Any

    # ---- Before training ----

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers'. Takes FSDP on CPUs too, where accelerate leaves it out and would train with DDP unasked.

        Raises:
            ValueError: For FSDP of version 1.
        """
        given = self.args.fsdp_plugin_args or {}
        asked = bool(given) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        version = int(given.get("fsdp_version", os.environ.get("FSDP_VERSION", 1)))
        if asked and version != 2:
            raise ValueError(
                f"fsdp_version must be 2, got {version}: launch with hf_geossl/training/accelerate/fsdp2.yaml, or set "
                "fsdp_version: 2 in your own file"
            )
        super().create_accelerator_and_postprocess()
        state: Any = self.accelerator.state
        if asked and state.distributed_type == DistributedType.MULTI_CPU:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**given)
            state.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # as accelerate does on GPUs
            self.is_fsdp_enabled = True
        if not self.is_fsdp_enabled:
            return
        if not state.fsdp_plugin.transformer_cls_names_to_wrap:
            state.fsdp_plugin.transformer_cls_names_to_wrap = [ViTLayer.__name__]
        if state.mixed_precision != "no":
            # autocast chooses what is computed in half precision, as it does without FSDP; accelerate's own policy would
            # round crop boxes, residual streams, prototypes and the loss too
            state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=None, reduce_dtype=torch.float32, cast_forward_inputs=False
            )

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """As transformers', which leaves autocast to accelerate, which leaves it out with FSDP2."""
        if self.is_fsdp_enabled and self.accelerator.mixed_precision != "no":
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(cache_enabled)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'; processes start from the first one's weights, with FSDP2 as with DDP."""
        if not self.is_fsdp_enabled:
            return super()._prepare_for_training(*args, **kwargs)
        if is_sharded(self.model):
            # trained before, and ready; accelerate would tell the parameters by their addresses, which parts without
            # rows have in common
            self.accelerator.prepare = _as_they_are
            try:
                return super()._prepare_for_training(*args, **kwargs)
            finally:
                del self.accelerator.prepare
        broadcast_state(self.model, self.args.device)
        # outputs are views here and there, and nothing changes them in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        # accelerate would divide the student's patch embedding by itself, which the teacher's is not
        self.model.get_input_embeddings = _nothing
        try:
            return super()._prepare_for_training(*args, **kwargs)
        finally:
            del self.model.get_input_embeddings

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers', and leaves a model that has not been trained as it was: accelerate takes one that has been
        evaluated for one that is ready, and would train it without DDP, each process for itself.
        """
        if self.accelerator._models or self.model_wrapped is not self.model:
            return super().evaluation_loop(*args, **kwargs)
        fsdp, self.is_fsdp_enabled = self.is_fsdp_enabled, False  # a model is divided together with its optimizer
        if fsdp:
            self.model.to(self.args.device)
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.is_fsdp_enabled = fsdp
            self.accelerator._models.clear()
            self.model_wrapped = self.model
            for name in ("_is_accelerate_prepared", "_original_forward", "forward"):  # autocast is wrapped again
                self.model.__dict__.pop(name, None)

    # ---- The model outside of its forward pass ----

    def whole_model(self) -> Any:
        """The model with whole weights, to call, draw or save; all processes must ask for it at the same time.

        Returns:
            `PreTrainedModel` or `None`: The model itself where it is not divided; otherwise a copy on the CPU of the
            first process (of each machine, with `save_on_each_node`), and None on the others.
        """
        model = self.accelerator.unwrap_model(self.model)
        return whole_copy(model, keep=self.args.should_save) if is_sharded(model) else model

    # ---- Checkpoints ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers', the same files whether the model is divided or not."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        model = self.whole_model()
        if self.args.should_save:
            folder = output_dir or self.args.output_dir or "."
            model.save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        try:
            load_state(self.accelerator.unwrap_model(self.model), read_state(resume_from_checkpoint))
        except ValueError as error:
            raise CheckpointError(f"{Path(resume_from_checkpoint).name} does not fit: {error}") from error

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled and self.state.best_model_checkpoint:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        model = self.accelerator.unwrap_model(self.model)
        state = gather_optimizer_state(model, self.optimizer, keep=self.args.should_save)
        if self.args.should_save and self.lr_scheduler is not None:
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.lr_scheduler is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # mapped, so that a process reads the pages of its own parts alone
        saved = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True, mmap=True)
        try:
            load_optimizer_state(self.accelerator.unwrap_model(self.model), self.optimizer, saved)
        except ValueError as error:
            raise CheckpointError(f"{Path(checkpoint).name} does not fit: {error}") from error
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))


def _nothing() -> None:
    return None


def _as_they_are(*prepared: Any) -> tuple[Any, ...]:
    return prepared
