"""transformers' Trainer with what a stage adds: the system's loss and evaluation, speed in the log, embeddings that
learn first, and checkpoints that are complete or removed."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerControl
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_pt_utils import nested_gather

from stages.callbacks.checkpoints import CheckpointError, newest_checkpoint
from stages.callbacks.log import SAMPLES, append
from stages.config import Rows
from stages.held_out import SOME_BLOCKS, spread_out
from stages.packing.blocks import PackedBlocks
from stages.planning.hardware import multiplying_parameters, this_gpu, train_flops
from stages.system import Opened
from stages.trainable import embedding_weights, split_groups

EMBEDDINGS = "embeddings"  # key of the optimizer's groups: whether they hold the embeddings


class StageTrainer(Trainer):
    """The Trainer of one stage.

    opened: the system at the start of the stage.
    """

    loss_is_scaled_for_ga = True  # the system divides its loss by the items of the whole step

    def __init__(self, *args: Any, opened: Opened, **kwargs: Any) -> None:
        self.opened, self.config = opened, opened.config
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # the same for releases of transformers before loss_is_scaled_for_ga
        self._fill, self._seen = self.train_dataset.fill, self.train_dataset.mean_length
        self._clock, self._clock_step = 0.0, None  # at the last report, or at the first step of this process

    # --- the loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | None:
        """Items of a step, over all of its passes and processes."""
        if not batch_samples:
            return None
        items = torch.stack([self.opened.items(batch) for batch in batch_samples]).sum()
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            items = self.accelerator.gather(items.to(device)).sum()
        return items.to(device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The system's loss. Several processes average their gradients, so it is multiplied by their number."""
        items = self.opened.items(inputs) if num_items_in_batch is None else num_items_in_batch
        loss = self.opened.loss(model, inputs, items)
        return loss * self.accelerator.num_processes if self.args.average_tokens_across_devices else loss

    # --- the log

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's; the first one of this process starts the clock, after a resume too. Processes with local steps
        keep their gradients."""
        if self._clock_step is None:
            self._clock, self._clock_step = time.monotonic(), self.state.global_step
        alone = self.config.local_steps > 1 and isinstance(model, DistributedDataParallel)
        with model.no_sync() if alone else contextlib.nullcontext():
            return super().training_step(model, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate on held-out documents, in every process: ZeRO-3 needs all of them for a forward pass."""
        began = time.monotonic()
        held_out: PackedBlocks = self.eval_dataset
        last = self.state.global_step >= self.state.max_steps
        report: dict[str, float] = {}
        if len(held_out):
            chosen = spread_out(len(held_out), len(held_out) if last else SOME_BLOCKS)
            report = self.opened.report(self.model, held_out, chosen) | {"dev_blocks": len(chosen)}
        self.log(report)
        if len(held_out) and self.config.samples:
            samples = self.opened.samples(self.model, held_out, self.config.samples)
            if self.is_world_process_zero():
                for sample in samples:
                    append(Path(self.args.output_dir) / SAMPLES, {"step": self.state.global_step, **sample})
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, report)
        self._clock += time.monotonic() - began
        return report

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add to a training report the tokens so far, and the speed since the last report.

        Raises: FloatingPointError when the loss is not finite.
        """
        if "loss" in logs:
            self._check_finite(logs["loss"])
            logs = {**logs, **self._speed()}
        super().log(logs, *args, **kwargs)

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            out = Path(self.args.output_dir)
            last = newest_checkpoint(out, delete=False)
            raise FloatingPointError(
                f"the loss is {loss} by step {self.state.global_step}: training diverged"
                f"{', or fp16 overflowed: use bf16 if the GPU has it' if self.args.fp16 else ''}; "
                f"{last.name if last else 'no checkpoint'} is from before. A checkpoint keeps its learning rate: lower "
                f"training.learning_rate, or raise training.warmup_steps, delete {out}, and run the same command"
            )

    def _speed(self) -> dict[str, float]:
        """tokens: positions of all blocks so far. tokens_per_second: without padding. mfu: share of the GPUs' peak that
        the model itself needs; what attention discards and checkpointing computes again is not counted."""
        now, step = time.monotonic(), self.state.global_step
        positions = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        positions *= self.config.block_size
        found: dict[str, float] = {"tokens": step * positions, "fill": round(self._fill, 4)}
        if step > self._clock_step:
            seconds = (now - self._clock) / (step - self._clock_step)
            found["tokens_per_second"] = round(positions * self._fill / seconds, 1)
            if self.opened.language_model is not None and (peak := self._peak_flops()):
                shape = self.opened.language_model.config.get_text_config()
                each = train_flops(
                    multiplying_parameters(self.model),
                    shape.num_hidden_layers,
                    shape.hidden_size,
                    self._seen,
                    learning=multiplying_parameters(self.model, learning=True),
                )
                found["mfu"] = round(positions / seconds * each / (peak * self.args.world_size), 4)
        self._clock, self._clock_step = now, step
        return found

    @staticmethod
    def _peak_flops() -> float | None:
        if not torch.cuda.is_available():
            return None
        properties = torch.cuda.get_device_properties(0)
        gpu = this_gpu(properties.name, properties.total_memory / 2**30)
        return gpu.tflops * 1e12 if gpu and gpu.tflops else None

    # --- which weights learn when

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's; embeddings that learn first, or at another rate, are in separate groups."""
        made = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        rows = self.config.rows
        if made or not (self.config.embeddings_steps or rows != Rows()):
            return optimizer
        groups = split_groups(optimizer.param_groups, embedding_weights(self.model), EMBEDDINGS)
        for group in groups:
            if group[EMBEDDINGS]:
                group["lr"] *= rows.rate
                group["weight_decay"] = 0.0 if rows.words == "keep" else group["weight_decay"]
        first = bool(self.config.embeddings_steps)  # the log has the first group's rate: that of what learns first
        optimizer.param_groups[:] = sorted(groups, key=lambda group: group[EMBEDDINGS] != first)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The Trainer's; if embeddings learn first, the other weights' learning rate is 0 until then.

        A learning rate of 0 instead of frozen weights works with every kind of sharding, and Adam has estimates of the
        gradients when the other weights start to learn.
        """
        made = self.lr_scheduler is not None
        groups = (optimizer or self.optimizer).param_groups
        self._groups = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        steps = self.config.embeddings_steps
        if (steps or self.config.rows != Rows()) and not made and EMBEDDINGS not in groups[0]:
            raise ValueError(
                "embeddings that learn first, or at another rate (trainable: embeddings_then_all, rows), need the "
                "Trainer's optimizer; use a DeepSpeed file without one, such as zero3"
            )
        if steps and not made:
            if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
                raise ValueError(
                    f"trainable: embeddings_then_all does not go with {self.args.lr_scheduler_type.value}; use linear, "
                    "cosine or constant_with_warmup"
                )
            for index, group in enumerate(scheduler.optimizer.param_groups):
                if not group[EMBEDDINGS]:
                    usual = scheduler.lr_lambdas[index]
                    scheduler.lr_lambdas[index] = lambda step, usual=usual: usual(step) if step >= steps else 0.0
                    group["lr"] = 0.0
        return scheduler

    # --- checkpoints

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The Trainer's, with two repairs for ZeRO-3 and a universal checkpoint in DeepSpeed 0.19: all states share one
        step counter, which each would increase, and all groups have the first group's settings."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.is_deepspeed_enabled or not is_deepspeed_zero3_enabled():
            return
        if "checkpoint" not in self.args.hf_deepspeed_config.config:
            return
        optimizer = self.model_wrapped.optimizer.optimizer  # torch's, within DeepSpeed's
        for state in optimizer.state.values():
            state["step"] = torch.as_tensor(state["step"]).clone()
        for group, made, rate in zip(
            optimizer.param_groups, self._groups, self.lr_scheduler.get_last_lr(), strict=True
        ):
            group.update({**made, "lr": rate})

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The Trainer's; where only some parts learn, a checkpoint holds their weights alone."""
        if isinstance(self.config.trainable, list):
            learning = {name for name, weight in self.model.named_parameters() if weight.requires_grad}
            whole = self.model.state_dict() if state_dict is None else state_dict
            state_dict = {name: weight for name, weight in whole.items() if name in learning}
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's; a checkpoint that fails is removed, and those before it stay.

        Raises: CheckpointError saying what is left and what to do; FloatingPointError if training diverged since the
            last report.
        """
        self._check_finite(nested_gather(self._tr_loss, self.args.parallel_mode).mean().item())
        out = Path(self.args.output_dir)
        part = out / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            last = newest_checkpoint(out, delete=self.is_world_process_zero())
            rest = f"{last.name} before it is complete" if last else "there is none before it"
            raise CheckpointError(
                f"{part} could not be written ({error}); {rest}. {_remedy(error)}; then run the same command to "
                "continue "
                "from there"
            ) from error


def _remedy(error: Exception) -> str:
    """What to do about a checkpoint that could not be written."""
    if isinstance(error, torch.OutOfMemoryError):
        return "The GPU's memory was full: make training.per_device_train_batch_size smaller"
    if isinstance(error, torch.distributed.DistError):
        return "The processes lost contact: see the error of the first that failed"
    return "If the disk is full, make room"
