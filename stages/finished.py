"""The finished model of a stage: written beside its place, then moved there, the completion file last."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from speechgpt.language_models.adapters import ADAPTER_CONFIG, BASE, REFERENCE, merged, set_base
from speechgpt.widen import gathered
from stages.config import StageConfig
from stages.system import Opened, System
from stages.trainable import embedding_weights
from stages.trainer import StageTrainer
from stages.written import check_written, documents_to_score, scores

ADAPTER = "adapter"  # folder of the adapter beside the model that it was merged into


def save_finished(trainer: StageTrainer, opened: Opened, system: System) -> None:
    """Write the finished model, and check that it scores as the trained one does.

    `config.json` is moved last, and then the system's facts are written.

    Raises: stages.written.WrittenModelError, in all processes, if the written model is not the trained one; nothing is
        moved to its place then.
    """
    out = opened.config.at(opened.config.out)
    part = out / ".final"
    blocks = documents_to_score(trainer.eval_dataset, trainer.train_dataset)
    trained = scores(opened, trainer.model, blocks)  # in every process: ZeRO-3 needs all of them for a forward pass
    trainer.model.config.use_cache = True  # the Trainer turned it off; generation needs it
    if trainer.is_world_process_zero():
        shutil.rmtree(part, ignore_errors=True)  # of an earlier end of this stage
    _write(trainer, opened, system, part)
    unset_hf_deepspeed_config()  # from here on one rank works alone
    with _first_process(trainer) as first:
        if first:
            check_written(trainer, opened, blocks, trained, part)
            _move(part, out)
            if facts := opened.facts():
                facts.save(out)


@contextlib.contextmanager
def _first_process(trainer: StageTrainer):
    """True in the first process; an error in it is raised in all."""
    failure: list[Exception | None] = [None]
    try:
        yield trainer.is_world_process_zero()
    except Exception as error:  # noqa: BLE001  # it is raised again, below, in every process
        failure = [error]
    if trainer.args.world_size > 1:
        torch.distributed.broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]


def _write(trainer: StageTrainer, opened: Opened, system: System, part: Path) -> None:
    """Write the finished model and its tokenizer into a folder, from the first process."""
    config = opened.config
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
    if trainer.is_world_process_zero():
        opened.tokenizer.save_pretrained(part)


def _save_adapters(trainer: StageTrainer, plain: Any, part: Path, config: StageConfig, system: System) -> None:
    """Write the adapters, and the model with the adapters merged into it."""
    assert config.lora
    adapter = part / ADAPTER if config.lora.merge else part
    learned = {name: weight for name, weight in plain.named_parameters() if "lora_" in name}
    widened = embedding_weights(plain.get_base_model()) if config.widen else set()
    rows = {name: weight for name, weight in plain.named_parameters() if id(weight) in widened and name not in learned}
    with gathered([*learned.values(), *rows.values()]):
        if trainer.is_fsdp_enabled:
            learned, rows = ({name: _whole(weight) for name, weight in some.items()} for some in (learned, rows))
        rows = {_name_in_base(name): weight.detach().cpu().clone() for name, weight in rows.items()}
        if trainer.is_world_process_zero():
            plain.save_pretrained(adapter, state_dict=learned, save_embedding_layers=False)
    unset_hf_deepspeed_config()  # from here on one rank works alone
    if not trainer.is_world_process_zero():
        return
    base = str(plain.get_base_model().name_or_path)
    if config.lora.merge:
        save_merged(config, adapter, system, part, rows)
    elif config.widen:
        start = system.open(config, dtype="auto")
        start.save(_with_rows(start.model, rows), part / BASE)
        start.tokenizer.save_pretrained(part / BASE)
    final = config.at(config.out)
    set_base(adapter, base, final / ADAPTER if config.lora.merge else final)


def _whole(weight: Any) -> Tensor:
    """A weight that FSDP may have sharded; those of the outermost module stay whole after a forward pass."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def _name_in_base(name: str) -> str:
    """The name in the base model of a weight that adapters were added to."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _with_rows(model: Any, rows: dict[str, Tensor]) -> Any:
    """A model that was widened again, with the rows of the one that was trained: at another precision, other random
    numbers are drawn for them."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, row in rows.items():
            weights[name].copy_(row)
    return model


def save_merged(
    config: StageConfig, adapter: Path, system: System, out: Path, rows: dict[str, Tensor] | None = None
) -> None:
    """Load the stage's start again, at its own precision, and save it with an adapter merged into it.

    Args:
        rows: by name, weights of the start that were widened in training.
    """
    start = system.open(config, dtype="auto")
    start.save(merged(_with_rows(start.model, rows or {}), adapter), out)


def _move(part: Path, out: Path) -> None:
    """Move the files of a finished model to their place, `config.json` last."""
    for path in (*out.glob("*.safetensors*"), out / ADAPTER_CONFIG, out / REFERENCE):
        path.unlink(missing_ok=True)  # of an earlier end of this stage: transformers would load its old adapter
    shutil.rmtree(out / BASE, ignore_errors=True)
    paths = [path for path in part.rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: path == part / "config.json"):
        (out / path.relative_to(part)).parent.mkdir(parents=True, exist_ok=True)
        path.replace(out / path.relative_to(part))
    for folder in sorted((path for path in part.rglob("*") if path.is_dir()), reverse=True):
        folder.rmdir()
    if part.exists():
        part.rmdir()
