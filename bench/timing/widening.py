"""Runs of unit pre-training from a widened LLM; the command is bench.widening."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.options import WideningOptions
from speechgpt.generation.likelihood import log_likelihoods, text_row
from stages.config import Source, StageConfig, Widening
from stages.held_out import held_out_report, spread_out
from stages.packing.attention import BY_DOCUMENT
from stages.packing.blocks import PackedBlocks, load_blocks
from stages.packing.check import set_attention
from stages.system import Opened
from stages.trainable import embedding_weights, keep_rows, split_groups
from stages.unit_system.system import UNIT_SYSTEM
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import finished_lines, text_lines
from units.runtime.provenance import commit, machine

RUNS = "runs.jsonl"
VARIED = ("inits", "rates", "warm_ups", "rows_rates", "words")  # options that settings have one of
MOST_GRADIENT = 1.0  # transformers' max_grad_norm


@dataclass(frozen=True)
class Setting:
    """init: INIT or INIT:SCALE. rate: learning rate. warm_up: steps in which the embedding rows alone learn.
    rows_rate: their rate, in that of the other weights. words: whether those of words learn, learn or keep."""

    init: str
    rate: float
    warm_up: int
    rows_rate: float = 1.0
    words: str = "learn"


def settings(options: WideningOptions) -> list[Setting]:
    """Every combination; a warm-up that is as long as the run is another question, and left out."""
    every = itertools.product(options.rates, options.warm_ups, options.rows_rates, options.words, options.inits)
    made = [Setting(init, rate, warm_up, rows_rate, words) for rate, warm_up, rows_rate, words, init in every]
    return [setting for setting in made if setting.warm_up < max(options.steps)]


def compare(out: Path, options: WideningOptions) -> list[dict[str, Any]]:
    """The lines of all runs, after those that are missing were run.

    Raises: FileNotFoundError if the LLM, the units or the texts are not there.
    """
    for path in (options.llm / "config.json", options.units / "unit_set.json", options.texts):
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there; make real-models makes the LLM, units-extract a unit set")
    torch.set_num_threads(options.threads)
    out.mkdir(parents=True, exist_ok=True)
    path = out / RUNS
    common = {name: value for name, value in asdict(options).items() if name not in VARIED}
    common = json.loads(json.dumps(common, default=str))
    for setting in settings(options):
        key = {**asdict(setting), "options": common}
        if any(key.items() <= line.items() for line in _lines(path)):
            continue
        line = {**key, **_run(out, options, setting), "commit": commit(), "machine": machine()}
        kept = [*_lines(path), line]
        with written_whole(path) as file:
            file.writelines(json.dumps(one) + "\n" for one in kept)
        print(table([line]).splitlines()[-1], flush=True)
    return _lines(path)


def _lines(path: Path) -> list[dict[str, Any]]:
    return list(finished_lines(path, {"init": str})) if path.exists() else []


def _run(out: Path, options: WideningOptions, setting: Setting) -> dict[str, Any]:
    """Train once. Returns held-out figures at step 0 and after each of the steps, and the seconds of the steps."""
    opened, blocks, held_out = _open(out, options, setting)
    model, report = opened.model, []
    embeddings = embedding_weights(model)
    every = [{"params": list(model.parameters()), "lr": setting.rate}]
    groups = split_groups(every, embeddings, "embeddings")
    for group in groups:
        group["lr"] *= setting.rows_rate if group["embeddings"] else 1.0
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    if setting.words == "keep":
        assert opened.added_tokens is not None
        keep_rows(model, opened.added_tokens)
    seconds = 0.0
    for step in range(max(options.steps) + 1):
        if step == 0 or step in options.steps:
            report.append({"step": step, **_figures(opened, held_out, options)})
        if step == max(options.steps):
            break
        began = time.process_time()
        for weight in model.parameters():
            weight.requires_grad_(step >= setting.warm_up or id(weight) in embeddings)
        _step(opened, optimizer, [blocks[step * options.batch + i] for i in range(options.batch)])
        seconds += time.process_time() - began
    return {"report": report, "cpu_seconds": round(seconds, 1)}


def _open(out: Path, options: WideningOptions, setting: Setting) -> tuple[Opened, PackedBlocks, PackedBlocks]:
    """The widened LLM in fp32, blocks to learn and held-out blocks."""
    init, _, scale = setting.init.partition(":")
    config = StageConfig(
        "widening",
        str(options.llm.resolve()),
        "tokens",  # the cache of token rows is all that is written there
        [Source(str(options.units.resolve()))],
        kind="units",
        run=out.resolve(),
        widen=Widening(str(options.encoder.resolve()), init, float(scale) if scale else None),  # type: ignore[arg-type]
        block_size=options.block,
        too_long="split",
        dev_documents=options.held_out * options.block // 64,  # fills the blocks, at 64 units a document or more
        seed=options.seed,
        training={"max_steps": max(options.steps)},
    )
    opened = UNIT_SYSTEM.open(config, dtype=torch.float32)
    set_attention(opened.model, BY_DOCUMENT)
    opened.model.train()
    blocks, held_out = load_blocks(opened, max(options.steps) * options.batch, quiet=True)
    return opened, blocks, held_out


def _step(opened: Opened, optimizer: torch.optim.Optimizer, blocks: list[dict[str, torch.Tensor]]) -> None:
    batch = opened.collator()(blocks)
    loss = opened.loss(opened.model, batch, opened.items(batch))
    loss.backward()
    torch.nn.utils.clip_grad_norm_([w for w in opened.model.parameters() if w.requires_grad], MOST_GRADIENT)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)  # new memory costs a tenth of a step


def _figures(opened: Opened, held_out: PackedBlocks, options: WideningOptions) -> dict[str, float]:
    """unit_loss: held-out loss a unit, in nats. text_loss: loss a token of the texts."""
    found = held_out_report(opened.model, held_out, spread_out(len(held_out), options.held_out), opened.kinds)
    tokenizer, model = opened.tokenizer, opened.model
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    texts = text_lines(options.texts)
    rows = [text_row(lambda t: tokenizer.encode(t, add_special_tokens=False), start, "", text) for _, text in texts]
    model.eval()
    scored = log_likelihoods(model, rows)
    model.train()
    nats = -sum(one.log_probability for one in scored) / sum(one.tokens for one in scored)
    return {"unit_loss": found["dev_units_loss"], "text_loss": round(nats, 4)}


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Markdown: a row for each run, the best held-out loss a unit after the most steps first."""
    lines = sorted(lines, key=lambda line: (max(_steps(line)), _steps(line)[max(_steps(line))]["unit_loss"]))
    steps = sorted({step for line in lines for step in _steps(line)})
    texts = "a token of text, first and last"
    head = ["init", "rate", "embeddings first", "rows' rate", "words", *(f"a unit, {n}" for n in steps), texts, "CPU s"]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        found = _steps(line)
        units = [_shown(found[n]["unit_loss"], 2) if n in found else "" for n in steps]
        first, last = (_shown(found[n]["text_loss"], 3) for n in (0, max(found)))
        setting = [line["init"], f"{line['rate']:g}", str(line["warm_up"])]
        setting += [f"{line.get('rows_rate', 1.0):g}", line.get("words", "learn")]
        rows.append([*setting, *units, f"{first}, {last}", f"{line['cpu_seconds']:.0f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _steps(line: dict[str, Any]) -> dict[int, dict[str, float]]:
    return {one["step"]: one for one in line["report"]}


def _shown(value: float, places: int) -> str:
    return f"{value:.{places}f}" if math.isfinite(value) else "diverged"
