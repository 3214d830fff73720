"""The one trainer of all stages.

    python -m stages.train stages/configs/toy/stage1.yaml                          # one process, CPU or one GPU
    python -m stages.train stages/configs/toy/stage1.yaml --training.max_steps 50  # any field can be overridden
    torchrun --nproc_per_node 8 -m stages.train stages/configs/7b/stage1.yaml      # DeepSpeed, as the file says

Writes checkpoints while it runs, then a plain Hugging Face folder, `log.jsonl`, and last `speechgpt.json`. A killed
stage goes on from its newest checkpoint; a finished one is not run again.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import is_deepspeed_zero3_enabled

from speechgpt.checkpoint import FILE, CheckpointFacts
from speechgpt.vocab import UnitVocab, VocabularyError
from speechgpt.widen import widen
from stages.config import Lora, StageConfig
from stages.data import IGNORED, load_blocks
from stages.watch import Watch
from units.codebook import Codebook
from units.kmeans import load_centres

DEEPSPEED = Path(__file__).parent / "configs" / "deepspeed"
TEXT_STAGE = "text"
OUR_FOLDERS = ("text_llm_untrained", "text_llm", "stage1", "stage2", "stage3")  # in a run folder; never hub ids


def training_arguments(config: StageConfig) -> TrainingArguments:
    """transformers' arguments: the config's `training`, with what the stage itself decides."""
    chosen = dict(config.training)
    named = DEEPSPEED / f"{chosen.get('deepspeed')}.json"
    if named.exists():
        chosen["deepspeed"] = str(named)
    if not torch.cuda.is_available():
        chosen["use_cpu"] = True
    quiet = {"report_to": "none", "disable_tqdm": not sys.stderr.isatty(), "logging_steps": 20, "save_total_limit": 2}
    arguments = TrainingArguments(
        output_dir=str(config.at(config.out)), seed=config.seed, remove_unused_columns=False, **{**quiet, **chosen}
    )
    if is_deepspeed_zero3_enabled():
        import deepspeed

        deepspeed.init_distributed()  # sharded loading asks it for the ranks; on CPU transformers joins torch's only
    return arguments


def find_start(config: StageConfig) -> Path | str:
    """Folder, or hub id, of the model that the stage starts from.

    Raises: FileNotFoundError, naming what to train first, when a folder of this run is missing or not finished.
    """
    folder = config.at(config.model)
    if (folder / "config.json").exists():
        return folder
    if folder.is_dir() or config.model in OUR_FOLDERS or Path(config.model).is_absolute():
        state = "is not finished (no config.json)" if folder.is_dir() else "is not there"
        raise FileNotFoundError(f"{folder} {state}: {config.stage} starts from it, so train {config.model} first")
    return config.model


def open_start(config: StageConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Codebook | None]:
    """Tokenizer and model that the stage starts from, widened if it says so, and the codebook of their units.

    Raises: FileNotFoundError or ValueError when the start is not what this stage needs.
    """
    start = find_start(config)
    widened = config.widen is None and config.stage != TEXT_STAGE
    codebook = CheckpointFacts.load(start).codebook if widened else None
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    if config.widen:
        encoder = config.at(config.widen.encoder)
        codebook = Codebook.load(encoder / "codebook.json")
        widen(
            tokenizer,
            model,
            codebook.size,
            config.widen.init,
            load_centres(encoder / "centres.safetensors"),
            config.seed,
        )
    return model, tokenizer, codebook


def train(config: StageConfig) -> Path:
    """Run one stage to its end; returns its folder."""
    out = config.at(config.out)
    finished = out / ("config.json" if config.stage == TEXT_STAGE else FILE)
    if finished.exists():
        print(f"{config.stage} is done already: {out}")
        return out
    arguments = training_arguments(config)  # before the model: DeepSpeed ZeRO-3 then loads it sharded
    set_seed(config.seed)
    model, tokenizer, codebook = open_start(config)
    count = (
        arguments.max_steps * arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    )
    with arguments.main_process_first(local=False, desc="data"):  # one rank fills the cache, the others read it
        blocks, dev = load_blocks(config, tokenizer, codebook, count, quiet=arguments.process_index > 0)
    try:
        vocab: UnitVocab | None = UnitVocab.from_words(tokenizer.get_vocab())
    except VocabularyError:
        vocab = None
    if config.lora:
        model = _with_lora(model, config.lora)
    loss = None  # the Trainer's own
    if vocab is not None and config.unit_loss_weight != 1:
        loss = functools.partial(weighted_loss, vocab, config.unit_loss_weight)
    trainer = Trainer(
        model, arguments, train_dataset=blocks, callbacks=[Watch(out / "log.jsonl", dev, vocab)], compute_loss_func=loss
    )
    trainer.train(resume_from_checkpoint=newest_checkpoint(out))
    _save(trainer, tokenizer, out)
    if trainer.is_world_process_zero() and codebook is not None and vocab is not None:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        facts = CheckpointFacts(
            codebook, config.stage, vocab.first_unit_id, config.prefix, dataclasses.asdict(config), versions
        )
        facts.save(out)
    return out


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
    is_unit = (labels >= vocab.first_unit_id) & (labels < vocab.first_unit_id + vocab.size)
    count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return (each * torch.where(is_unit, unit_weight, 1.0)).sum() / count


def newest_checkpoint(out: Path) -> str | None:
    """The newest whole checkpoint; the Trainer writes trainer_state.json last, so one without it was cut short."""
    whole = [path for path in out.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def _with_lora(model: PreTrainedModel, lora: Lora) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets,
        ),
    )


def _whole(model: torch.nn.Module) -> AbstractContextManager:
    """Inside it every rank holds whole parameters, also under ZeRO-3."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(model.parameters()))


def _save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write the finished model beside its place, then move it there, `config.json` last."""
    part = out / ".final"
    trainer.model.config.use_cache = True  # the Trainer turned it off; whoever generates wants it
    plain = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(plain, "merge_and_unload"):
        with _whole(plain):
            if trainer.is_world_process_zero():
                plain.merge_and_unload().save_pretrained(part)
    elif is_deepspeed_zero3_enabled() or trainer.is_fsdp_enabled:
        trainer.save_model(str(part))
    elif trainer.is_world_process_zero():
        plain.save_pretrained(part)  # which writes tied weights once; the Trainer under ZeRO 1 and 2 writes them twice
    if not trainer.is_world_process_zero():
        return
    tokenizer.save_pretrained(part)
    (part / "training_args.bin").unlink(missing_ok=True)
    for path in sorted(part.iterdir(), key=lambda path: path.name == "config.json"):
        path.replace(out / path.name)
    part.rmdir()


def main(argv: list[str] | None = None) -> None:
    """`python -m stages.train CONFIG [--field value ...]`."""
    from jsonargparse import ArgumentParser

    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv[:1] = ["--config", argv[0]]
    parser = ArgumentParser(prog="python -m stages.train", description="Train one stage.")
    parser.add_argument("--config", action="config", help="the stage's file")
    parser.add_class_arguments(StageConfig)
    config = parser.instantiate(parser.parse_args(argv))
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(StageConfig)}
    try:
        checked = StageConfig(**fields)
    except ValueError as error:
        parser.error(str(error))
    train(checked)


if __name__ == "__main__":
    main()
