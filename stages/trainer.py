"""transformers' Trainer with what the stages add: the loss by kind of token, a look at held-out documents, speed in the
log, embeddings that learn first, and checkpoints that fail whole."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_pt_utils import nested_gather

from speechgpt.vocab import UnitVocab
from stages.checkpoints import CheckpointError, newest_checkpoint
from stages.config import StageConfig
from stages.data import IGNORED, PackedBlocks
from stages.planning.hardware import multiplying_parameters, this_gpu, train_flops
from stages.start import embedding_weights
from stages.watch import DEV_BLOCKS, append, held_out_report, sample_replies

LATE = "late"  # key of the optimizer's groups that wait until the embeddings have learned


class StageTrainer(Trainer):
    """A Trainer of one stage. config, tokenizer, vocab: the stage's; vocab is None while there are no units."""

    def __init__(
        self,
        *args: Any,
        config: StageConfig,
        tokenizer: PreTrainedTokenizerBase,
        vocab: UnitVocab | None,
        **kwargs: Any,
    ) -> None:
        self.config, self.tokenizer, self.vocab = config, tokenizer, vocab
        super().__init__(*args, **kwargs)
        self._fill, self._seen = self.train_dataset.fill, self.train_dataset.mean_length
        self._clock, self._clock_step = 0.0, None  # of the last report, or of the first step that this process does

    # --- what is written down

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's own; the first one of this process starts the clock, after a resume too."""
        if self._clock_step is None:
            self._clock, self._clock_step = time.monotonic(), self.state.global_step
        return super().training_step(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Look at the held-out documents, on every process: ZeRO-3 needs all for a forward pass."""
        began = time.monotonic()
        dev: PackedBlocks = self.eval_dataset
        last = self.state.global_step >= self.state.max_steps
        report = held_out_report(self.model, dev, self.vocab, len(dev) if last else DEV_BLOCKS) if len(dev) else {}
        self.log(report)
        if len(dev) and self.config.samples:
            samples = sample_replies(self.model, dev, self.tokenizer, self.vocab, self.config.samples)
            if self.is_world_process_zero():
                for sample in samples:
                    append(Path(self.args.output_dir) / "samples.jsonl", {"step": self.state.global_step, **sample})
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, report)
        self._clock += time.monotonic() - began
        return report

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """To a training report add the tokens so far, and the speed since the last one.

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
                f"{', or fp16 overflowed: take bf16 where the GPU has it' if self.args.fp16 else ''}; "
                f"{last.name if last else 'no checkpoint'} is from before. A checkpoint keeps the rates it was made with: "
                f"lower training.learning_rate, or raise training.warmup_steps, delete {out}, and run the same command"
            )

    def _speed(self) -> dict[str, float]:
        """tokens: positions of all blocks so far. tokens_per_second: without padding. mfu: share of the GPUs' peak that
        the model itself needs, whatever attention computes and throws away, and checkpointing computes again."""
        now, step = time.monotonic(), self.state.global_step
        positions = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        positions *= self.config.block_size
        found: dict[str, float] = {"tokens": step * positions, "fill": round(self._fill, 4)}
        if step > self._clock_step:
            seconds = (now - self._clock) / (step - self._clock_step)
            found["tokens_per_second"] = round(positions * self._fill / seconds, 1)
            if peak := self._peak_flops():
                shape = self.model.config.get_text_config()
                each = train_flops(
                    multiplying_parameters(self.model), shape.num_hidden_layers, shape.hidden_size, self._seen,
                    learning=multiplying_parameters(self.model, learning=True),
                )  # fmt: skip
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

    # --- what learns when

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's own; where embeddings learn first, the other weights stand in groups of their own."""
        made = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.config.embeddings_steps and not made:
            early = embedding_weights(self.model)
            groups = []
            for group in optimizer.param_groups:
                for late in (False, True):
                    chosen = [weight for weight in group["params"] if (id(weight) not in early) == late]
                    if chosen:
                        groups.append({**group, "params": chosen, LATE: late})
            optimizer.param_groups[:] = groups
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The Trainer's own; where embeddings learn first, the other weights' rate is 0 until then.

        A rate, rather than frozen weights: so it goes with every kind of sharding, and Adam knows the gradients' size
        when they join.
        """
        made = self.lr_scheduler is not None
        groups = (optimizer or self.optimizer).param_groups
        self._groups = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        steps = self.config.embeddings_steps
        if steps and not made:
            if LATE not in groups[0]:
                raise ValueError(
                    "trainable: embeddings_then_all needs an optimizer made here; take a DeepSpeed file without one, such "
                    "as zero3"
                )
            if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
                raise ValueError(f"trainable: embeddings_then_all does not go with {self.args.lr_scheduler_type.value}; "
                                 "take linear, cosine or constant_with_warmup")  # fmt: skip
            for index, group in enumerate(scheduler.optimizer.param_groups):
                if group[LATE]:
                    usual = scheduler.lr_lambdas[index]
                    scheduler.lr_lambdas[index] = lambda step, usual=usual: usual(step) if step >= steps else 0.0
                    group["lr"] = 0.0
        return scheduler

    # --- checkpoints

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The Trainer's own; DeepSpeed 0.19 then needs two repairs when ZeRO-3 goes on from a universal checkpoint: all its
        states share one step counter, which each would raise, and all groups have the first one's settings."""
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

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's own; one that fails is taken away, and those before it stay.

        Raises: CheckpointError saying what is left and what to do; FloatingPointError rather than save weights that
            went wrong since the last report.
        """
        self._check_finite(nested_gather(self._tr_loss, self.args.parallel_mode).mean().item())
        out = Path(self.args.output_dir)
        part = out / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            last = newest_checkpoint(out, delete=self.is_world_process_zero())
            rest = f"{last.name} before it is whole" if last else "there is none before it"
            raise CheckpointError(
                f"{part} could not be written ({error}); {rest}. {_remedy(error)}; then run the same command, and it goes on "
                "from there"
            ) from error


def _remedy(error: Exception) -> str:
    """What to do about a checkpoint that could not be written."""
    if isinstance(error, torch.OutOfMemoryError):
        return "The GPU's memory was full: make training.per_device_train_batch_size smaller"
    if isinstance(error, torch.distributed.DistError):
        return "The processes lost one another: see what the first that failed said"
    return "If the disk is full, make room"


def weighted_loss(
    vocab: UnitVocab, unit_weight: float, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Cross-entropy in which a unit token counts `unit_weight` and a text token 1, summed over the counted tokens and
    divided by their number, as the Trainer's own loss is.

    labels: (B, L), -100 where nothing counts.
    """
    labels = labels[:, 1:].flatten()
    logits = outputs.logits[:, :-1].flatten(0, 1).float()
    each = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return (each * torch.where(vocab.is_unit(labels), unit_weight, 1.0)).sum() / count
