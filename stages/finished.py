"""The finished model of a stage: written beside its place, then moved there, the completion file last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from speechgpt.widen import gathered
from stages.config import StageConfig
from stages.system import Opened, System
from stages.trainer import StageTrainer


def save_finished(trainer: StageTrainer, opened: Opened, system: System) -> None:
    """Write the finished model; `config.json` is moved last, and then the system's facts are written."""
    config = opened.config
    out = config.at(config.out)
    part = out / ".final"
    trainer.model.config.use_cache = True  # the Trainer turned it off; generation needs it
    plain = trainer.accelerator.unwrap_model(trainer.model)
    if config.lora:
        _save_adapters(trainer, plain, part, config, system)
    elif is_deepspeed_zero3_enabled() or trainer.is_fsdp_enabled:
        whole = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # in the first process only
        if trainer.is_world_process_zero():
            once = {name: weight for name, weight in whole.items() if name not in plain.all_tied_weights_keys}
            opened.save(plain, part, once)
    elif trainer.is_world_process_zero():
        opened.save(plain, part)  # it writes tied weights once; the Trainer under ZeRO 1 and 2 writes them twice
    if not trainer.is_world_process_zero():
        return
    opened.tokenizer.save_pretrained(part)
    _move(part, out)
    if facts := opened.facts():
        facts.save(out)


def _save_adapters(trainer: StageTrainer, plain: Any, part: Path, config: StageConfig, system: System) -> None:
    """Write the adapters, and the model with the adapters merged into it."""
    assert config.lora
    adapters = {name: weight for name, weight in plain.named_parameters() if "lora_" in name}
    with gathered(list(adapters.values())):
        if trainer.is_fsdp_enabled:
            adapters = {name: weight.full_tensor() for name, weight in adapters.items()}
        if trainer.is_world_process_zero():
            plain.save_pretrained(part / "adapter" if config.lora.merge else part, state_dict=adapters)
    unset_hf_deepspeed_config()  # from here on one rank works alone
    if trainer.is_world_process_zero() and config.lora.merge:
        save_merged(config, part / "adapter", system, part)


def save_merged(config: StageConfig, adapter: Path, system: System, out: Path) -> None:
    """Load the stage's start again, at its own precision, and save it with an adapter merged into it."""
    from peft import PeftModel

    start = system.open(config, dtype="auto")
    start.save(PeftModel.from_pretrained(start.model, adapter).merge_and_unload(), out)


def _move(part: Path, out: Path) -> None:
    """Move the files of a finished model to their place, `config.json` last."""
    for path in (*out.glob("*.safetensors*"), out / "adapter_config.json"):
        path.unlink(missing_ok=True)  # of an earlier end of this stage: transformers would load its old adapter
    paths = [path for path in part.rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: path == part / "config.json"):
        (out / path.relative_to(part)).parent.mkdir(parents=True, exist_ok=True)
        path.replace(out / path.relative_to(part))
    for folder in sorted((path for path in part.rglob("*") if path.is_dir()), reverse=True):
        folder.rmdir()
    if part.exists():
        part.rmdir()
