"""Training steps of packed blocks beside upstream's padded batches; the command is bench.train."""

from __future__ import annotations

import gc
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import is_liger_kernel_available

from bench.options import WARM_UP, TrainOptions
from speechgpt.vocab import new_words
from stages.config import Source, StageConfig
from stages.packing.attention import takes_bounds
from stages.packing.blocks import IGNORED, PackedBlocks, flattened, load_blocks
from stages.packing.tokens import Tokenised
from stages.planning.hardware import multiplying_parameters, this_gpu, train_flops
from stages.start import loading_arguments
from stages.start_models.text_llm import train_tokenizer
from stages.unit_system.opened import UnitOpened
from units.codebook import Codebook
from units.dataset.unit_set import COMPLETION_FILE, SCHEMA, shard_path
from units.runtime.precision import multiplies_bfloat16
from units.runtime.provenance import commit, machine

SHAPES: dict[str, dict[str, Any]] = {
    "toy": {
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "intermediate_size": 512,
        "vocab_size": 1024,
        "tie_word_embeddings": True,
    },
    "smol": {  # SmolLM2-135M-Instruct, widened by 500 units
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49664,
        "tie_word_embeddings": True,
    },
    "1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "intermediate_size": 5632,
        "vocab_size": 33024,
        "tie_word_embeddings": False,
    },
}
# the option's name in transformers from 5.23 on, and before
CHECKPOINTING = (
    "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
)
SHARD_ROWS = 20_000


@dataclass(frozen=True)
class Speed:
    """tokens_per_second: without padding. positions_per_second: with it. gib: peak GPU memory in GiB; 0 on a CPU."""

    tokens_per_second: float
    positions_per_second: float
    gib: float


def conversations(count: int, block: int, seed: int) -> Tokenised:
    """A stage-2 mix: half short text chats, half ASR and TTS examples whose utterances last 2 to 15 seconds."""
    draw = np.random.default_rng(seed)
    written = np.exp(draw.normal(np.log(60), 0.6, count))  # tokens of a question and its answer
    spoken = 40 + 30 * np.exp(draw.normal(np.log(5), 0.6, count))  # a task, words, and 30 units a second
    lengths = np.clip(np.where(draw.random(count) < 0.5, written, spoken), 12, block).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    tokens = draw.integers(3, 1000, int(lengths.sum())).astype(np.int32)
    train = np.arange(len(tokens)) - np.repeat(starts, lengths) >= np.repeat(lengths // 2, lengths)  # the reply
    return Tokenised(tokens, train, starts, lengths, np.zeros(count, np.int16), np.zeros(count, np.uint64), ["stage 2"])


class Padded(torch.utils.data.Dataset):
    """Upstream's way: one conversation per item; `collate` pads a batch to its longest."""

    def __init__(self, documents: Tokenised, count: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        rounds = -(-count // len(documents))
        self.documents = documents
        self.order = np.concatenate([draw.permutation(len(documents)) for _ in range(rounds)])[:count]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.documents.document(int(self.order[index]))

    @staticmethod
    def collate(batch: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
        longest = max(len(ids) for ids, _ in batch)
        rows: dict[str, list[np.ndarray]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for ids, train in batch:
            room = longest - len(ids)
            rows["input_ids"].append(np.pad(ids, (0, room)))
            rows["labels"].append(np.pad(np.where(train, ids, IGNORED), (0, room), constant_values=IGNORED))
            rows["attention_mask"].append(np.pad(np.ones(len(ids), int), (0, room)))
        return {name: torch.from_numpy(np.stack(row).astype(np.int64)) for name, row in rows.items()}


class Clock(TrainerCallback):
    """Wall-clock time of the steps after the first few."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs) -> None:
        if state.global_step in (WARM_UP, state.max_steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if state.global_step == WARM_UP:
                self.began = time.perf_counter()
            else:
                self.seconds = time.perf_counter() - self.began


def stage_attention(attention: Any = "auto") -> str:
    """The attention that stages.train would use on this machine, by what a stage's config names."""
    on_gpu = torch.cuda.is_available()
    half = multiplies_bfloat16("cuda" if on_gpu else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, bf16=half, use_cpu=not on_gpu, report_to="none")
        config = StageConfig("stage2", "m", "o", [Source("data")], attention=attention, training={"max_steps": 1})
        return loading_arguments(config, arguments).get("attn_implementation", "sdpa")


def trained(
    shape: str,
    data: Any,
    steps: int,
    batch: int,
    fused: bool,
    seed: int,
    attention: Any = "auto",
    checkpointing: bool = False,
    compiled: bool = False,
) -> Speed:
    """Train a new model for some steps, on `data` in its order, so that its tokens can be counted."""
    gc.collect()  # accelerate puts a model into a reference cycle, so the one before may still hold its memory
    torch.manual_seed(seed)
    on_gpu = torch.cuda.is_available()
    half = multiplies_bfloat16("cuda" if on_gpu else "cpu")
    model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=4096))
    collate: Any = torch.utils.data.default_collate
    if isinstance(data, Padded):
        collate = Padded.collate
    else:
        model.set_attn_implementation(stage_attention(attention))
        if takes_bounds(model):
            collate = flattened
    clock = Clock()
    fed = {"positions": 0, "batches": 0}

    def counted(items: list[Any]) -> dict[str, torch.Tensor]:
        made = collate(items)
        if WARM_UP <= fed["batches"] < steps:
            fed["positions"] += made["input_ids"].numel()
        fed["batches"] += 1
        return made

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            save_strategy="no",
            report_to="none",
            seed=seed,
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=not on_gpu,
            bf16=half,
            use_liger_kernel=fused,
            torch_compile=compiled,
            train_sampling_strategy="sequential",
            logging_steps=steps,
            **{CHECKPOINTING: checkpointing},
        )
        if arguments.n_gpu > 1:
            arguments._n_gpu = 1  # as stages.train, else the Trainer would wrap the model in DataParallel
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        Trainer(model, arguments, train_dataset=data, data_collator=counted, callbacks=[clock]).train()
    real = sum(real_tokens(data, index) for index in range(WARM_UP * batch, steps * batch))
    gib = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    return Speed(real / clock.seconds, fed["positions"] / clock.seconds, gib)


def real_tokens(data: Any, index: int) -> int:
    """Tokens of an item that are not padding."""
    if isinstance(data, Padded):
        return len(data[index][0])
    return sum(int(data.sources[source].lengths[document]) for source, document in data.documents_of(index))


def write_units(folder: Path, units: int, seed: int) -> Codebook:
    """Write a unit set of about so many units, in utterances of 2 to 20 seconds."""
    codebook = Codebook("bench", "mfcc", 0, 1000, 50.0, "utterance", "00000000")
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    shards = total = rows = 0
    while total < units:
        lengths = draw.integers(60, 600, min(SHARD_ROWS, max(1, (units - total) // 330)))
        offsets = np.cumsum([0, *lengths]).astype(np.int32)
        flat = pa.array(draw.integers(0, 1000, offsets[-1]).astype(np.uint16))
        lists = pa.ListArray.from_arrays(pa.array(offsets), flat)
        ids = pa.array([f"u{rows + i}" for i in range(len(lengths))])
        columns = [ids, lists, lists, pa.array(lengths * 320)]
        columns += [pa.nulls(len(lengths), field.type) for field in list(SCHEMA)[len(columns) :]]
        table = pa.table(columns, schema=SCHEMA).replace_schema_metadata({"codebook": codebook.to_json()})
        pq.write_table(table, shard_path(folder, shards))
        shards, total, rows = shards + 1, total + int(offsets[-1]), rows + len(lengths)
    facts = {
        "codebook": json.loads(codebook.to_json()),
        "utterances": rows,
        "seconds": 0.0,
        "shards": shards,
        "refused": 0,
    }
    (folder / COMPLETION_FILE).write_text(json.dumps(facts))
    return codebook


def data_start(units: int, block: int, seed: int) -> dict[str, float]:
    """Seconds from a unit set to the first block, without and with the cache; then the blocks' tokens per second."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        codebook = write_units(run / "units", units, seed)
        (run / "text.txt").write_text("what is two plus two? that makes four.\n" * 20)
        tokenizer: LlamaTokenizer = train_tokenizer(run / "text.txt", 300)
        tokenizer.add_tokens(new_words(codebook.size), special_tokens=True)
        config = StageConfig(
            "stage1", "m", "o", [Source("units")], run=run, block_size=block, training={"max_steps": 1}
        )
        found: dict[str, float] = {}
        for time_of in ("first_start_seconds", "start_seconds"):
            began = time.perf_counter()
            blocks, _ = load_blocks(UnitOpened(config, None, tokenizer, codebook), units // block, quiet=True)
            blocks[0]
            found[time_of] = time.perf_counter() - began
        began, count = time.perf_counter(), min(len(blocks), 4000)
        for index in np.random.default_rng(seed).permutation(len(blocks))[:count].tolist():
            blocks[index]
        found["feed_tokens_per_second"] = count * block * blocks.fill / (time.perf_counter() - began)
        return found


def compare(options: TrainOptions) -> dict[str, Any]:
    """Train in both ways, start the data and feed it; every figure by name."""
    steps, batch, block, seed = options.steps, options.batch, options.block, options.seed
    on_gpu = torch.cuda.is_available()
    fused = on_gpu and is_liger_kernel_available()  # as stages.train decides
    documents = conversations(4000, block, seed)
    packed = PackedBlocks([(documents, np.arange(len(documents)), 1.0)], block, steps * batch, 0, seed)
    alike = (seed, options.attention, options.checkpointing)
    ours = trained(options.shape, packed, steps, batch, fused, *alike, options.compile)
    figures: dict[str, Any] = {
        "fill": packed.fill,
        "attention": stage_attention(options.attention),
        "compiled": options.compile,
        "fused_loss": fused,
        "tokens_per_second": ours.tokens_per_second,
    }
    if options.upstream:
        theirs = trained(options.shape, Padded(documents, steps * batch, seed), steps, batch, False, *alike)
        figures |= {
            "upstream_tokens_per_second": theirs.tokens_per_second,
            "times_upstream": ours.tokens_per_second / theirs.tokens_per_second,
            "upstream_fill": theirs.tokens_per_second / theirs.positions_per_second,
        }
    if on_gpu:
        whole = trained(options.shape, packed, steps, batch, False, *alike, options.compile) if fused else ours
        figures |= {"gib_whole_logits": whole.gib} | ({"gib_fused_loss": ours.gib} if fused else {})
        figures |= {"mfu": utilisation(options.shape, block, ours)}
    figures |= data_start(options.units, block, seed)
    figures["feed_times_training"] = figures["feed_tokens_per_second"] / ours.tokens_per_second
    return figures | {
        "shape": options.shape,
        "checkpointing": options.checkpointing,
        "block": block,
        "batch": batch,
        "steps": steps,
        "units": options.units,
        "machine": machine("cuda" if on_gpu else "cpu"),
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }


def utilisation(shape: str, block: int, speed: Speed) -> float | None:
    """Model FLOPs utilisation of this GPU; None if its peak is not known."""
    properties = torch.cuda.get_device_properties(0)
    gpu = this_gpu(properties.name, properties.total_memory / 2**30)
    config = LlamaConfig(**SHAPES[shape])
    with torch.device("meta"):
        multiplying = multiplying_parameters(LlamaForCausalLM(config))
    flops = train_flops(multiplying, config.num_hidden_layers, config.hidden_size, block)
    return speed.positions_per_second * flops / (gpu.tflops * 1e12) if gpu and gpu.tflops else None
