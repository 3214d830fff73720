"""The one trainer of all stages.

    python -m stages.train stages/configs/toy/stage1.yaml                          # one process, CPU or one GPU
    python -m stages.train stages/configs/toy/stage1.yaml --training.max_steps 50  # any field can be overridden
    python -m stages.train stages/configs/7b/stage1.yaml --plan --gpus 8 --gpu A100-80G  # what it would take; trains nothing
    torchrun --nproc_per_node 8 -m -- stages.train stages/configs/7b/stage1.yaml   # DeepSpeed, as the file says

Writes checkpoints while it runs, then a plain Hugging Face folder, `log.jsonl`, and last `speechgpt.json`. A killed
stage goes on from its newest checkpoint; a finished one is not run again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import is_liger_kernel_available

from speechgpt.checkpoint import FILE, CheckpointFacts
from speechgpt.vocab import UnitVocab, VocabularyError
from speechgpt.widen import gathered
from stages.attention import takes_bounds
from stages.checkpoints import STOPPED, Checkpoints, check_shared, common_checkpoint, prepare_resume
from stages.config import StageConfig, unknown_names
from stages.data import flattened, load_blocks
from stages.planning.page import print_plan
from stages.planning.plan import Cluster
from stages.start import TEXT_STAGE, PackingCheck, choose_trainable, loading_arguments, open_start
from stages.trainer import StageTrainer, weighted_loss
from stages.watch import Watch
from units.runtime.atomic import written_whole
from units.runtime.precision import multiplies_bfloat16

DEEPSPEED = Path(__file__).parent / "configs" / "deepspeed"
PATIENCE = 86400.0  # seconds that processes wait while the first one prepares data: a day
RESOLVED = "stage.yaml"  # the whole config of a stage, as it was resolved


def training_arguments(config: StageConfig) -> TrainingArguments:
    """transformers' arguments: the config's `training`, with what the stage itself decides."""
    chosen = dict(config.training)
    if hasattr(TrainingArguments, "activation_checkpointing") and "gradient_checkpointing" in chosen:
        chosen["activation_checkpointing"] = chosen.pop("gradient_checkpointing")  # its name from transformers 5.23 on
    named = DEEPSPEED / f"{chosen.get('deepspeed')}.json"
    if named.exists():
        chosen["deepspeed"] = str(named)
    if chosen.get("deepspeed"):  # which calls what torch has renamed, at each gradient: a warning each
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        chosen["use_cpu"] = True
        only_for_speed = not chosen.get("deepspeed") and not config.lora  # which save memory by it
        if chosen.get("bf16") and only_for_speed and not multiplies_bfloat16("cpu"):
            print("this processor has no instructions for bfloat16 and would emulate it slowly: training in float32")
            chosen["bf16"] = False
        if chosen.get("fsdp"):
            print("accelerate shards by FSDP on GPUs only: on CPUs each process keeps the whole model; to shard it there: "
                  "--training.fsdp null --training.deepspeed zero3")  # fmt: skip
    quiet = {
        "report_to": "tensorboard" if importlib.util.find_spec("tensorboard") else "none",
        "disable_tqdm": not sys.stderr.isatty(),
        "logging_steps": 20,
        "save_total_limit": 2,
        "train_sampling_strategy": "sequential",  # PackedBlocks are drawn at random; so more steps only go on from fewer
        "logging_nan_inf_filter": False,  # which would log a loss that is nan as 0, and wait for the GPU in each pass
        "eval_strategy": "steps",
        "eval_steps": chosen["max_steps"],  # at the end, if nowhere else
        "ddp_find_unused_parameters": False,  # all that learn are used; to look for others costs a walk in each pass
        "dataloader_num_workers": 2 if on_gpu else 0,  # where the GPU would wait for blocks
        "use_liger_kernel": config.fused_loss == "always"
        or (config.fused_loss == "auto" and on_gpu and is_liger_kernel_available() and config.unit_loss_weight == 1),
        "gradient_accumulation_steps": config.accumulation(int(os.environ.get("WORLD_SIZE", 1))),
    }
    arguments = TrainingArguments(
        output_dir=str(config.at(config.out)), seed=config.seed, remove_unused_columns=False, **{**quiet, **chosen}
    )
    if arguments.n_gpu > 1:
        print(f"one process trains on one GPU; for all {arguments.n_gpu}: torchrun --nproc_per_node {arguments.n_gpu} "
              "-m stages.train ...")  # fmt: skip
        arguments._n_gpu = 1  # else the Trainer would wrap the model in DataParallel
    if is_deepspeed_zero3_enabled():
        import deepspeed

        # sharded loading asks it for the ranks; on CPU transformers joins torch's only
        deepspeed.init_distributed(timeout=arguments.ddp_timeout_delta)
    return arguments


@contextlib.contextmanager
def first_process_first(arguments: TrainingArguments) -> Iterator[None]:
    """The first process does what stands below, then all others do it.

    Preparing data, or rewriting a checkpoint, may take longer than the half hour after which processes that train give one
    another up. So they ask the store by which they found each other: it needs no connection that they do not have yet, as a
    group of gloo's would, which not every cluster's network allows.

    Raises: TimeoutError when the first process takes more than a day.
    """
    if arguments.world_size == 1:
        yield
        return
    store = torch.distributed.distributed_c10d._get_default_store()
    key, end = f"prepared {arguments.output_dir}", time.monotonic() + PATIENCE
    while arguments.process_index and not store.check([key]):
        if time.monotonic() > end:
            raise TimeoutError(f"the first process has not prepared the data of {arguments.output_dir} in a day")
        time.sleep(0.5)
    try:
        yield
    finally:
        if arguments.process_index == 0:
            store.set(key, "")


def train(config: StageConfig) -> Path:
    """Run one stage to its end; returns its folder.

    Raises: SystemExit, after a checkpoint, when the process is told to stop (SIGTERM); ValueError if the processes do not
        all see the run folder.
    """
    out = config.at(config.out)
    finished = out / ("config.json" if config.stage == TEXT_STAGE else FILE)
    if finished.exists():
        print(f"{config.stage} is done already: {out}")
        return out
    arguments = training_arguments(config)  # before the model: DeepSpeed ZeRO-3 then loads it sharded
    check_shared(out, arguments)
    checkpoint = common_checkpoint(out, arguments)
    set_seed(config.seed)
    model, tokenizer, codebook = open_start(config, **loading_arguments(config, arguments))
    count = (
        arguments.max_steps * arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    )
    with first_process_first(arguments):  # one fills the cache, the others read it
        blocks, dev = load_blocks(config, tokenizer, codebook, count, quiet=arguments.process_index > 0)
        if checkpoint:
            prepare_resume(checkpoint, arguments)
        if arguments.process_index == 0:
            _save_resolved(config, out, checkpoint is not None)
    try:
        vocab: UnitVocab | None = UnitVocab.from_words(tokenizer.get_vocab())
    except VocabularyError:
        vocab = None
    loss = None  # the Trainer's own
    if vocab is not None and config.unit_loss_weight != 1:
        loss = functools.partial(weighted_loss, vocab, config.unit_loss_weight)
    keeper = Checkpoints()
    trainer = StageTrainer(
        choose_trainable(model, config), arguments, config=config, tokenizer=tokenizer, vocab=vocab, compute_loss_func=loss,
        train_dataset=blocks, eval_dataset=dev, callbacks=[PackingCheck(config.attention), keeper, Watch(out / "log.jsonl")],
        data_collator=flattened if takes_bounds(model) else None,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if keeper.stopped:
        trainer.accelerator.wait_for_everyone()  # whoever ends first is the launcher's reason to kill the others
        print(f"{config.stage} stopped at step {trainer.state.global_step} of {arguments.max_steps}, all saved; the same "
              "command goes on", flush=True)  # fmt: skip
        raise SystemExit(STOPPED)
    _save(trainer, tokenizer, config)
    if trainer.is_world_process_zero() and codebook is not None and vocab is not None:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        facts = CheckpointFacts(
            codebook, config.stage, vocab.first_unit_id, config.prefix, dataclasses.asdict(config), versions
        )
        facts.save(out)
    trainer.accelerator.wait_for_everyone()  # on another machine the next stage may look for this one at once
    return out


def _save_resolved(config: StageConfig, out: Path, resuming: bool) -> None:
    """Write the config beside the checkpoints; if they were made under another one, say what differs."""
    path = out / RESOLVED
    resolved = {**dataclasses.asdict(config), "run": str(config.run)}
    if resuming and path.exists():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name in resolved.keys() | before.keys():
            if resolved.get(name) != before.get(name):
                print(f"{name} was {before.get(name)} in the checkpoints, and is {resolved.get(name)} from here on")
    with written_whole(path) as file:
        yaml.safe_dump(resolved, file, sort_keys=False)


def _save(trainer: StageTrainer, tokenizer: PreTrainedTokenizerBase, config: StageConfig) -> None:
    """Write the finished model beside its place, then move it there, `config.json` last."""
    out = config.at(config.out)
    part = out / ".final"
    trainer.model.config.use_cache = True  # the Trainer turned it off; whoever generates wants it
    plain = trainer.accelerator.unwrap_model(trainer.model)
    if config.lora:
        adapters = {name: weight for name, weight in plain.named_parameters() if "lora_" in name}
        with gathered(list(adapters.values())):
            if trainer.is_fsdp_enabled:
                adapters = {name: weight.full_tensor() for name, weight in adapters.items()}
            if trainer.is_world_process_zero():
                plain.save_pretrained(part / "adapter" if config.lora.merge else part, state_dict=adapters)
        unset_hf_deepspeed_config()  # from here on one rank works alone
        if trainer.is_world_process_zero() and config.lora.merge:
            merged(config, part / "adapter").save_pretrained(part)
    elif is_deepspeed_zero3_enabled() or trainer.is_fsdp_enabled:
        whole = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # of the first process alone
        if trainer.is_world_process_zero():
            once = {name: weight for name, weight in whole.items() if name not in plain.all_tied_weights_keys}
            plain.save_pretrained(part, state_dict=once)
    elif trainer.is_world_process_zero():
        plain.save_pretrained(part)  # which writes tied weights once; the Trainer under ZeRO 1 and 2 writes them twice
    if not trainer.is_world_process_zero():
        return
    tokenizer.save_pretrained(part)
    for path in (*out.glob("*.safetensors*"), out / "adapter_config.json"):
        path.unlink(missing_ok=True)  # a stage ended anew: transformers would lay its old adapter over the new weights
    for path in sorted(
        (path for path in part.rglob("*") if path.is_file()), key=lambda path: path.name == "config.json"
    ):
        (out / path.relative_to(part)).parent.mkdir(exist_ok=True)
        path.replace(out / path.relative_to(part))
    for folder in (part / "adapter", part):
        if folder.exists():
            folder.rmdir()


def merged(config: StageConfig, adapter: Path) -> PreTrainedModel:
    """The model that the stage started from, opened anew at its own precision, with an adapter added into its weights."""
    from peft import PeftModel

    start, _, _ = open_start(config, dtype="auto")
    return PeftModel.from_pretrained(start, adapter).merge_and_unload()


def main(argv: list[str] | None = None) -> None:
    """`python -m stages.train CONFIG [--field value ...] [--plan --gpus N --gpu KIND]`."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    argv = list(sys.argv[1:] if argv is None else argv)
    file = Path(argv[0]) if argv and not argv[0].startswith("-") else None
    if file:
        argv[:1] = ["--config", str(file)]
    parser = ArgumentParser(prog="python -m stages.train", description="Train one stage.")
    parser.add_argument("--config", action="config", help="the stage's file")
    parser.add_argument("--plan", action="store_true", help="print what the stage would take, and train nothing")
    parser.add_argument("--share", type=int, metavar="N",
                        help="print how many of N processes can share the stage's batch, and train nothing")  # fmt: skip
    parser.add_class_arguments(StageConfig)
    parser.add_class_arguments(Cluster)
    if wrong := _wrong_names(file, argv):
        parser.error("; ".join(wrong))
    given = parser.instantiate(parser.parse_args(argv))
    config, cluster = (
        {field.name: getattr(given, field.name) for field in dataclasses.fields(kind)}
        for kind in (StageConfig, Cluster)
    )
    try:
        checked = StageConfig(**config)
        if given.share:
            processes = checked.sharing(given.share) or 1
            checked.accumulation(processes)  # which raises if it does not divide
            return print(processes)
        if given.plan:
            return print_plan(checked, Cluster(**cluster), file)
    except ValueError as error:
        parser.error(str(error))
    train(checked)


def _wrong_names(file: Path | None, argv: list[str]) -> list[str]:
    """Names in the stage's file and on the command line that mean nothing, each with the nearest that does."""
    given: list[dict[str, Any]] = []
    if file and file.exists():
        given.append(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    ours = {"config", "plan", "share", "help", "print_config"} | {field.name for field in dataclasses.fields(Cluster)}
    for option in (argument[2:].split("=")[0].rstrip("+") for argument in argv if argument.startswith("--")):
        if option.split(".")[0] not in ours:
            nested: Any = None
            for name in reversed(option.split(".")):
                nested = {name: nested}
            given.append(nested)
    return [wrong for names in given for wrong in unknown_names(names, StageConfig)]


if __name__ == "__main__":
    main()
