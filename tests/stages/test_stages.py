"""A stage from its yaml to its folder: refusals, training on CPU, resume, adapters, widening."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from stage_configs import CONFIGS, parsed
from tiny_run import CODEBOOK, FOREIGN, make_run, opened, stage_config
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainingArguments

from speechgpt.checkpoint import CheckpointFacts
from speechgpt.vocab import UnitVocab
from speechgpt.widen import ROW_MULTIPLE
from stages import stage
from stages.arguments import DEEPSPEED, training_arguments
from stages.callbacks.checkpoints import checkpoints, newest_checkpoint
from stages.callbacks.log import append, read_log
from stages.config import Lora, Source, StageConfig
from stages.packing.blocks import IGNORED, load_blocks
from stages.planning.page import kept_checkpoints
from stages.train import cli, main, train
from stages.unit_system.opened import UnitOpened
from stages.unit_system.system import UnitSystem
from units.runtime.files.yaml_files import read_yaml
from units.runtime.precision import autocast

PRESETS = sorted(CONFIGS.glob("*/*.yaml"))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A tiny run folder with stage 1 trained in it."""
    run = make_run(tmp_path_factory.mktemp("built"))
    train(stage_config(run, training={"eval_steps": 2}))
    return run


@pytest.fixture
def run(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "run"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# --- config ---


@pytest.mark.parametrize("path", PRESETS, ids=[f"{p.parent.name}/{p.stem}" for p in PRESETS])
def test_presets_parse_and_name_what_is_there(path: Path, monkeypatch) -> None:
    config = parsed(monkeypatch, str(path))
    assert config.stage == path.stem
    assert all(isinstance(source, Source) for source in config.data)
    sharding = config.training.get("deepspeed")
    assert sharding is None or (DEEPSPEED / f"{sharding}.json").is_file()
    kept = {name: value for name, value in config.training.items() if name not in ("bf16", "deepspeed")}
    config.training = kept  # what a machine without GPU or distribution refuses
    assert training_arguments(config).max_steps == kept["max_steps"]


@pytest.mark.parametrize(("size", "gpus"), [("7b", (96, 96, 8)), ("13b", (96, 96, 8)), ("1b", (1, 1, 1))])
def test_budgets_are_the_paper_s(size: str, gpus: tuple[int, ...], monkeypatch) -> None:
    paper = [(900, 768, 1024), (2100, 1536, 512), (4200, 128, 1024)]
    for number, count, budget in zip((1, 2, 3), gpus, paper, strict=True):
        config = parsed(monkeypatch, str(CONFIGS / size / f"stage{number}.yaml"))
        training = config.training
        if size != "1b":
            assert (training["max_steps"], config.batch, config.block_size) == budget
        if number == 1:
            assert config.too_long == "split"  # of a long recording all is learned
        if number == 2:
            assert config.data[1].tasks == ["chat"]
        for processes in {count, 8, 1}:  # however many GPUs there are, a step is as large
            passes = config.accumulation(processes)
            assert training["per_device_train_batch_size"] * passes * processes == config.batch
    assert config.lora == Lora() and config.training["learning_rate"] == 2e-5
    warmup = training_arguments(StageConfig("s", "m", "o", [], training={**training, "bf16": False, "deepspeed": None}))
    assert warmup.get_warmup_steps(4200) == 126


@pytest.mark.skipif(torch.cuda.is_available(), reason="about processors without a GPU")
@pytest.mark.parametrize("found", [{"avx512_bf16": False, "amx_bf16": True}, {"avx512_f": True, "avx512_bf16": False}])
def test_bfloat16_is_for_processors_that_multiply_it(found: dict[str, bool], monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    native, training = any(found.get(name) for name in ("avx512_bf16", "amx_bf16")), {"max_steps": 1, "bf16": True}
    assert autocast("cpu")._enabled == native
    assert training_arguments(StageConfig("s", "m", "o", [], training=training)).bf16 == native
    assert ("training in float32" in capsys.readouterr().out) == (not native)
    adapters = StageConfig("s", "m", "o", [], training=training, lora=Lora())
    assert training_arguments(adapters).bf16  # it saves memory there


def test_null_is_as_if_not_given_and_keeps_all_checkpoints() -> None:
    def arguments(**training) -> TrainingArguments:
        return training_arguments(StageConfig("s", "m", "o", [], training={"max_steps": 7, **training}))

    assert arguments().save_total_limit == 2
    assert arguments(save_total_limit=None).save_total_limit is None
    config = StageConfig("s", "m", "o", [], batch=8, training={"max_steps": 7, "per_device_train_batch_size": None})
    assert config.accumulation(1) == 1
    assert kept_checkpoints({"max_steps": 70, "save_steps": 10}) == 3
    assert kept_checkpoints({"max_steps": 70, "save_steps": 20, "save_total_limit": None}) == 4
    assert kept_checkpoints({"max_steps": 70, "save_steps": 0.1, "save_total_limit": None}) == 10


@pytest.mark.parametrize(
    ("on_gpu", "given", "workers"), [(True, {}, 2), (False, {}, 0), (True, {"dataloader_num_workers": 0}, 0)]
)
def test_a_gpu_does_not_wait_for_blocks_or_for_numbers(monkeypatch, on_gpu: bool, given: dict, workers: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    arguments = training_arguments(stage_config(Path("runs"), training={"use_cpu": True, **given}))
    assert arguments.dataloader_num_workers == workers
    assert arguments.ddp_find_unused_parameters is False and arguments.logging_nan_inf_filter is False


def test_fsdp_on_cpus_reports_that_nothing_is_sharded(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    training_arguments(stage_config(Path("runs"), training={"fsdp": True}))
    assert "each process keeps the whole model" in capsys.readouterr().out


def test_a_batch_that_does_not_divide_names_one_that_does() -> None:
    config = StageConfig("s", "m", "o", [], batch=24, training={"max_steps": 1, "per_device_train_batch_size": 5})
    with pytest.raises(ValueError, match="passes of 5 blocks on 4 processes; .*batch_size to 1 or 2 or 3$"):
        config.accumulation(4)
    with pytest.raises(ValueError, match="the number of processes must divide 24; 1 would"):
        config.accumulation(7)
    stage3 = StageConfig("s", "m", "o", [], batch=128, training={"max_steps": 1, "per_device_train_batch_size": 4})
    with pytest.raises(ValueError, match="the number of processes must divide 128; 32 would"):
        stage3.accumulation(96)


@pytest.mark.parametrize("path", sorted(DEEPSPEED.glob("*.json")), ids=lambda path: path.stem)
def test_deepspeed_files_leave_batch_sizes_to_the_stage(path: Path) -> None:
    settings = json.loads(path.read_text())
    assert settings["zero_optimization"]["stage"] == int(path.stem[4])
    for name in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert settings[name] == "auto"


@pytest.mark.parametrize(
    ("stage", "kind"), [("text", "text"), ("stage1", "units"), ("stage2", "cross_modal"), ("stage3", "chain")]
)
def test_stages_of_release_0_1_0_have_kinds_by_their_names(tmp_path, monkeypatch, stage: str, kind: str) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(f"stage: {stage}\nmodel: m\nout: o\ndata: [{{path: x}}]\ntraining: {{max_steps: 3}}\n")
    assert parsed(monkeypatch, str(file)).kind == kind
    assert parsed(monkeypatch, str(file), "--kind", "other").kind == "other"


def test_the_kind_of_a_stage_decides_and_not_its_name(run) -> None:
    reading = {"stage": "stage2", "kind": "text", "widen": None, "data": [Source("corpus/text.txt")]}
    folder = train(stage_config(run, out="read_again", **reading, training={"max_steps": 1}))
    assert (folder / "config.json").exists() and not (folder / "speechgpt.json").exists()
    assert train(stage_config(run, out="read_again", **reading)) == folder  # complete without it
    with pytest.raises(ValueError, match="kind is 'answer'; a stage of SpeechGPT is one of text, units, cross_modal"):
        train(stage_config(run, out="no", kind="answer"))


def test_an_error_of_the_user_is_one_line_and_exit_code_2(run, capsys) -> None:
    file = run / "lost.yaml"
    file.write_text("stage: s\nmodel: stage2\nout: o\ndata: [{path: x}]\ntraining: {max_steps: 3}\n")
    with pytest.raises(SystemExit) as stopped:
        cli([str(file), "--run", str(run)])
    printed = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and printed[-1].startswith("stages-train: ") and str(run / "stage2") in printed[-1]
    assert not any("Traceback" in line for line in printed)


def test_any_field_can_be_overridden_and_the_rest_stays(monkeypatch) -> None:
    file = str(CONFIGS / "7b" / "stage2.yaml")
    config = parsed(monkeypatch, file, "--training.max_steps", "7", "--block_size", "64", "--run", "elsewhere")
    assert (config.training["max_steps"], config.block_size, config.run) == (7, 64, Path("elsewhere"))
    assert config.training["deepspeed"] == "zero2" and config.training["learning_rate"] == 2e-5


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("blok_size: 64\n", "blok_size is not a setting; did you mean block_size?"),
        ("widen: {encoder: e, inti: mean}\n", "widen.inti is not a setting; did you mean init?"),
        ("lora: {rank: 4, alhpa: 2}\n", "lora.rank is not a setting.*lora.alhpa is not a setting; did you mean alpha?"),
        ("training: {max_steps: 3, learning_rat: 1}\n", "learning_rat is no argument.*did you mean learning_rate?"),
        ("training: {max_steps: 3, save_total_limit: 1}\n", "save-total-limit is 1; it must be at least 2"),
        ("batch: 8\ntraining: {max_steps: 3, gradient_accumulation_steps: 2}\n", "batch decides the accumulation"),
        ("trainable: embeddings_then_all\n", "embeddings_steps above 0 belong together"),
        ("trainable: embeddings\nlora: {r: 2}\n", "lora trains adapters only"),
        ("fused_loss: always\nunit_loss_weight: 0.5\n", "set unit_loss_weight: 1, or fused_loss: never"),
        ("unit_noise: 1.0\n", "unit_noise is 1.0; it must be below 1"),
        ("reply_noise: 1.0\n", "reply_noise is 1.0; it must be below 1"),
        ("unit_noise: 0.1\ntrain_on_prompt: true\n", "leave one of them out"),
        ("widen: {encoder: e, init: median}\n", "median"),
        ("training: {learning_rate: 1.0e-3}\n", "max_steps must be set"),
        ("training: {max_steps: null}\n", "max_steps must be set, and above 0"),
        ("threads: -1\n", "threads is -1; it must be at least 0 and at most 1024"),
        ("training: {max_steps: 3, output_dir: x}\n", "output_dir is set by the stage; use out"),
    ],
)
def test_a_wrong_config_is_refused_in_words(tmp_path, capsys, extra: str, message: str) -> None:
    file = tmp_path / "stage.yaml"
    training = "" if "training:" in extra else "training: {max_steps: 3}\n"
    file.write_text("stage: stage1\nmodel: m\nout: o\ndata: [{path: x}]\n" + training + extra)
    with pytest.raises(SystemExit) as stopped:
        cli([str(file)])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--blok_size=3", "did you mean block_size?"),
        ("--widen.inti", "widen.inti.*did you mean init?"),
        ("--training.max_step", "max_step is no argument.*did you mean max_steps?"),
    ],
)
def test_a_wrong_option_is_refused_with_the_nearest(capsys, option: str, message: str) -> None:
    with pytest.raises(SystemExit):
        cli([str(CONFIGS / "7b" / "stage2.yaml"), *option.split("="), *(["3"] if "=" not in option else [])])
    assert re.search(message, capsys.readouterr().err, re.DOTALL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"stage: s\nstage: t\n", "'stage' is given twice.*line 2"),
        (b"stage: s\ntraining: {max_steps: 1, max_steps: 2}\n", "'max_steps' is given twice"),
        ("stage: caf\u00e9\n".encode("latin-1"), "not UTF-8 text"),
        (b"stage: [s\n", "not YAML"),
        (b"stage: s\0\n", "a NUL byte at 8"),
        (b"- stage\n", "no settings"),
        (b"stage\n", "no settings"),
        (b"[" * 5000, "not YAML"),
    ],
)
def test_a_damaged_config_is_one_line_that_names_it(tmp_path, capsys, content: bytes, message: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_bytes(content)
    for args in ([str(file)], [str(file), "--plan"]):
        with pytest.raises(SystemExit) as stopped:
            cli(args)
        (line,) = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and line.startswith(f"stages-train: {file}: ") and re.search(message, line)


def test_a_name_may_be_merged_and_written_over(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}\n")
    assert read_yaml(tmp_path / "a.yaml")["d"] == {"b": 3, "c": 2}
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbf# nothing\r\n")
    assert read_yaml(tmp_path / "a.yaml") == {}


def test_options_are_written_with_dashes_too(monkeypatch) -> None:
    config = parsed(monkeypatch, str(CONFIGS / "7b" / "stage2.yaml"), "--block-size", "64", "--unit-noise=0.1")
    assert (config.block_size, config.unit_noise) == (64, 0.1)


def test_a_log_with_line_separators_in_replies_is_read_on_resuming(tmp_path) -> None:
    append(path := tmp_path / "samples.jsonl", {"step": 1, "reply": "a\u2028b\x85c"})
    append(path, {"step": 2})
    with path.open("a") as file:
        file.write('{"step": 3, "rep')  # killed here
    assert read_log(path) == [{"step": 1, "reply": "a\u2028b\x85c"}, {"step": 2}]


def test_a_folder_of_another_name_is_no_checkpoint(tmp_path) -> None:
    for name in ("checkpoint-7", "checkpoint-21", "checkpoint-best", "checkpoint-7.old", "checkpoint-"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-21", "checkpoint-7"]


def test_help_is_the_docstrings(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(StageConfig):
        assert f"--{field.name}" in printed
    assert "so any number of GPUs trains the same" in printed and "Tokens of a packed block" in printed


# --- one stage, from start to folder ---


def test_a_missing_start_names_what_to_train_first(run) -> None:
    shutil.rmtree(run / "stage1")
    config = stage_config(run, stage="stage2", model="stage1", out="stage2", widen=None)
    with pytest.raises(FileNotFoundError, match="stage1 does not exist: stage2 starts from it, so train stage1 first"):
        train(config)
    (run / "stage1/checkpoint-2").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="stage1 is not finished.*train stage1 first"):
        train(config)
    shutil.copytree(run / "text_llm", run / "stage1", dirs_exist_ok=True)  # a text LLM where a stage should be
    with pytest.raises(FileNotFoundError, match="has no speechgpt.json, so it is no finished"):
        train(config)


def test_a_stage_ends_in_a_plain_folder_with_its_facts(built) -> None:
    folder = built / "stage1"
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "speechgpt.json", "log.jsonl"} <= names
    assert not (folder / ".final").exists() and "training_args.bin" not in names
    made = {name: (folder / name).stat().st_ctime_ns for name in ("model.safetensors", "config.json", "speechgpt.json")}
    assert list(made) == sorted(made, key=lambda name: made[name])
    facts = CheckpointFacts.load(folder)
    assert (facts.codebook, facts.stage, facts.config["training"]["max_steps"]) == (CODEBOOK, "stage1", 4)
    assert json.loads((folder / "config.json").read_text()).get("use_cache", True)
    steps = [record for record in log(folder) if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert steps[-1]["tokens"] == 4 * 2 * 64
    held_out = [record for record in log(folder) if "dev_units_loss" in record]
    assert [record["step"] for record in held_out] == [2, 4] and "dev_text_ppl" in held_out[0]
    seconds = [record["seconds"] for record in log(folder)]
    assert seconds == sorted(seconds)


PLAIN = """
import sys, importlib.util
from transformers import AutoModelForCausalLM, AutoTokenizer
assert not any(importlib.util.find_spec(name) for name in ("speechgpt", "units", "stages", "instruct_data"))
for folder in sys.argv[1:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    print(model(**tokenizer("red <3><4>", return_tensors="pt")).logits.shape[-1], len(tokenizer))
"""


def test_each_stage_s_folder_opens_where_this_project_cannot_be_imported(run, tmp_path) -> None:
    short = {"widen": None, "data": [Source("data/chat.jsonl.gz")], "training": {"max_steps": 1}}
    text = train(
        stage_config(
            run, stage="text", out="read", widen=None, data=[Source("corpus/text.txt")], training={"max_steps": 1}
        )
    )
    two = train(stage_config(run, stage="stage2", model="stage1", out="stage2", **short))
    three = train(stage_config(run, stage="stage3", model="stage2", out="stage3", lora=Lora(), **short))
    folders = [str(folder) for folder in (text, run / "stage1", two, three)]
    environment = {**os.environ, "PYTHONPATH": str(Path(transformers.__file__).parents[1])}
    command = [sys.executable, "-S", "-c", PLAIN, *folders]  # -S: an editable install of this repository is not seen
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    widths = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(widths) == 4 and all(rows >= words for rows, words in widths)
    assert all(rows % ROW_MULTIPLE == 0 and rows > widths[0][0] for rows, _ in widths[1:])


def test_the_last_evaluation_uses_all_held_out_blocks(run, monkeypatch) -> None:
    evaluations: list[list[int]] = []
    monkeypatch.setattr("stages.trainer.SOME_BLOCKS", 2)
    monkeypatch.setattr(UnitOpened, "report", lambda self, model, dev, chosen: evaluations.append(chosen) or {})
    config = stage_config(run, out="evaluations", block_size=32, training={"eval_steps": 2})
    out = train(config)
    _, dev = load_blocks(opened(config, AutoTokenizer.from_pretrained(out)), 1, quiet=True)
    assert evaluations == [[0, len(dev) // 2], [*range(len(dev))]] and len(dev) > 2
    assert [row["dev_blocks"] for row in read_log(out / "log.jsonl") if "dev_blocks" in row] == [2, len(dev)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="threads are those of a CPU's training")
def test_a_stage_trains_on_as_many_threads_as_its_config_has(run, monkeypatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    train(stage_config(run, out="as_torch"))
    assert chosen == []
    train(stage_config(run, out="three", threads=3))
    assert chosen == [3]
    chosen.clear()
    train(stage_config(run, out="timed", threads="auto"))
    assert chosen[0] == 1 and chosen[-1] == torch.get_num_threads()


def test_threads_are_a_number_or_auto(run) -> None:
    with pytest.raises(ValueError, match="threads is 'all'; it must be a whole number or auto"):
        stage_config(run, threads="all")


def test_a_finished_stage_is_not_run_again(run, capsys, monkeypatch) -> None:
    monkeypatch.setattr(UnitSystem, "open", None)
    assert train(stage_config(run)) == run / "stage1"
    assert "stage1 is done already" in capsys.readouterr().out


def test_a_stage_killed_before_its_last_file_only_finishes(run) -> None:
    before = weights(run / "stage1")
    (run / "stage1/speechgpt.json").unlink()
    logged = log(run / "stage1")
    train(stage_config(run))
    assert (run / "stage1/speechgpt.json").exists()
    assert all(torch.equal(before[name], weight) for name, weight in weights(run / "stage1").items())
    assert log(run / "stage1")[: len(logged)] == logged


@pytest.mark.parametrize(("adapted", "weight", "passes"), [(False, 1.0, 1), (True, 1.0, 2), (False, 0.3, 2)])
def test_the_trainer_s_loss_is_that_of_documents_one_by_one(run, adapted: bool, weight: float, passes: int) -> None:
    still = {"max_steps": 1, "per_device_train_batch_size": 4 // passes, "learning_rate": 0.0}
    training = {**still, "gradient_accumulation_steps": passes, "gradient_checkpointing": adapted}
    config = stage_config(run, out="still", unit_loss_weight=weight, training=training)
    if adapted:
        changes = {"stage": "stage3", "kind": "chain", "model": "stage1", "widen": None}
        config = dataclasses.replace(config, **changes, lora=Lora(dropout=0.0))
    folder = train(config)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    blocks, _ = load_blocks(opened(config, tokenizer), 4)
    is_unit = UnitVocab.from_words(tokenizer.get_vocab()).is_unit
    losses = []
    for block in blocks:  # one step used them all
        starts = [*torch.where(block["position_ids"] == 0)[0].tolist(), config.block_size]
        for start, end in zip(starts, starts[1:], strict=False):
            ids, labels = block["input_ids"][start:end], block["labels"][start:end]
            with torch.no_grad():
                scores = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            for i, token in enumerate(labels.tolist()):
                if token != IGNORED:
                    losses.append(-scores[i - 1, token].item() * (weight if is_unit(token) else 1.0))
    (logged,) = (record["loss"] for record in log(folder) if "loss" in record)
    assert logged == pytest.approx(sum(losses) / len(losses), abs=1e-4)


# --- resume ---


class Kill(TrainerCallback):
    """A process that dies right after a step's checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step > self.step:
            raise KeyboardInterrupt


def killed_after(step: int, config: StageConfig, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        whole = stage.StageTrainer
        patch.setattr(
            stage, "StageTrainer", lambda *a, callbacks, **k: whole(*a, callbacks=[*callbacks, Kill(step)], **k)
        )
        with pytest.raises(KeyboardInterrupt):
            train(config)


def test_a_resumed_stage_ends_where_the_undisturbed_one_does(run, monkeypatch) -> None:
    plan = {"max_steps": 8, "save_steps": 2, "eval_steps": 4, "lr_scheduler_type": "cosine", "warmup_steps": 2}
    whole = train(stage_config(run, out="whole", training=plan))
    config = stage_config(run, out="parts", training=plan)
    killed_after(5, config, monkeypatch)  # dies in step 6: checkpoint 4 is the newest
    assert not (run / "parts/config.json").exists()
    (run / "parts/checkpoint-6").mkdir()  # and a checkpoint that was cut short
    with (run / "parts/log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert newest_checkpoint(run / "parts") == run / "parts/checkpoint-4"
    clock = log_seconds(run / "parts", 4)
    parts = train(config)
    expected = weights(whole)
    for name, weight in weights(parts).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)
    curves = [{r["step"]: r["loss"] for r in log(folder) if "loss" in r} for folder in (whole, parts)]
    assert list(curves[1]) == list(range(1, 9))
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert all(record["seconds"] >= clock for record in log(parts) if record["step"] > 4)


def log_seconds(folder: Path, step: int) -> float:
    """Clock of the last whole record up to a step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines() if line.endswith("}")]
    return max(record["seconds"] for record in lines if record["step"] <= step)


# --- adapters ---


def test_lora_merges_into_a_plain_folder(run) -> None:
    config = stage_config(
        run,
        stage="stage3",
        model="stage1",
        out="stage3",
        widen=None,
        lora=Lora(r=2, alpha=4, dropout=0.0),
        data=[Source("data/chat.jsonl.gz")],
        training={"gradient_checkpointing": True, "save_steps": 2},
    )
    before, after = weights(run / "stage1"), weights(train(config))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(re.search(r"\.(q|v)_proj\.weight$", name) for name in changed)
    model = AutoModelForCausalLM.from_pretrained(run / "stage3")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert CheckpointFacts.load(run / "stage3").config["lora"]["r"] == 2


def test_later_stages_refuse_units_of_another_codebook(run) -> None:
    facts = CheckpointFacts.load(run / "stage1")
    CheckpointFacts(FOREIGN, "stage1", facts.first_unit_id).save(run / "stage1")
    with pytest.raises(ValueError, match="'tiny'.*'foreign'"):
        train(stage_config(run, stage="stage2", model="stage1", out="stage2", widen=None))
