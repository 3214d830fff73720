"""BLSP at the start of a stage: of kind speech, an adapter before a frozen LLM; of kind text, the LLM alone.

A stage of kind text tunes the LLM on text instructions, and saves a plain Hugging Face folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from speechgpt.checkpoint import CheckpointFacts
from stages.config import Source
from stages.counted import counted_logits
from stages.held_out import held_out_report
from stages.packing.attention import takes_one_row
from stages.packing.blocks import PackedBlocks
from stages.system import Collator, Documents, Opened
from units.runtime.refusals import Refusals
from variants.blsp.adapter import SpeechAdapter
from variants.blsp.adapter_shape import AdapterShape
from variants.blsp.config import BlspConfig
from variants.blsp.data.asked import Asked
from variants.blsp.data.batch import collate
from variants.blsp.data.documents import DOCUMENTS_VERSION, Writer
from variants.blsp.data.examples import form_of, read_examples
from variants.blsp.data.labels import label_files
from variants.blsp.records import ADAPTER_FILE, SYSTEM, BlspFacts, read_adapter
from variants.blsp.template import TEMPLATE_VERSION, Template, open_template
from variants.encoders import width_of
from variants.listening import SpeechLLM, row
from variants.references import Reference, fingerprint, located
from variants.speech_in.batch import Block
from variants.speech_in.stage import ListeningOpened


class BlspOpened(ListeningOpened):
    """BLSP at the start of a stage of kind speech."""

    parts = {"adapter": ("adapter.",), "llm": ("llm.",)}
    config: BlspConfig
    model: SpeechLLM
    template: Template

    def __init__(self, config: BlspConfig, model: SpeechLLM, tokenizer: Any, start: Path) -> None:
        super().__init__(config, model, tokenizer, start)
        self.template = open_template(config.template, tokenizer)

    # --- the adapter

    @property
    def shape(self) -> AdapterShape:
        return self.config.adapter

    def new_adapter(self, hidden: int) -> SpeechAdapter:
        return SpeechAdapter(width_of(self.source), hidden, self.shape)

    def read_adapter(self, folder: Path) -> Mapping[str, Tensor]:
        return read_adapter(folder)

    # --- documents

    def documents(self, source: Source, path: Path) -> Iterator[Documents]:
        refusals = Refusals()
        examples = read_examples(path, self.config.instructions["continue"])
        asked = Asked(self.config.instructions)
        chosen = (asked.noted(one) for one in examples if source.tasks is None or one.task in source.tasks)
        yield from self.writer(Writer).documents(chosen, refusals)
        if refusals.counts:
            print(f"{source.path}: {refusals}", flush=True)
        for line in asked.other():
            print(f"{source.path}: {line}", flush=True)

    def writer(self, kind: type[Writer]) -> Writer:
        """What turns examples into documents."""
        config, pad = self.config, self.tokenizer.eos_token_id or 0
        return kind(self.template, self.listens, config.adapter, pad, config.features == "live", config.has_teacher)

    def files(self, source: Source, path: Path) -> list[Path]:
        return self.files_of(label_files(path), read_examples(path, self.config.instructions["continue"]))

    def cache_key(self, source: Source) -> list[Any]:
        config = self.config
        return [
            SYSTEM,
            DOCUMENTS_VERSION,
            TEMPLATE_VERSION,
            config.template,
            getattr(self.tokenizer, "chat_template", None) if config.template == "chat" else None,
            config.instructions["continue"],
            [config.adapter.kernels, config.adapter.strides],
            [fingerprint(located(self.source)), config.encoder_layer, config.window, config.features],
            config.has_teacher,
        ]

    # --- batches and loss

    def collator(self) -> Collator:
        return self.collator_of(collate)

    def loss(self, model: Any, batch: dict[str, Any], items: Tensor) -> Tensor:
        """Cross-entropy with the labels, and divergence from the LLM that reads the transcript, by their weights."""
        weights = self.config.loss
        logits, labels = counted_logits(model, self.inputs(batch, model.training), batch["labels"])
        total = logits.new_zeros(())
        if weights.ce:
            total = total + weights.ce * functional.cross_entropy(logits, labels, reduction="sum")
        if weights.kl:
            total = total + weights.kl * divergence(logits, self.teacher_logits(batch), weights.temperature)
        return total / items

    @torch.no_grad()
    def teacher_logits(self, batch: dict[str, Any]) -> Tensor:
        """What the LLM predicts for each counted token when it reads transcripts, (n, V)."""
        names = {name: name.removeprefix("teacher_") for name in batch if name.startswith("teacher_")}
        inputs = {short: batch[name] for name, short in names.items() if short not in ("ids", "labels", "positions")}
        inputs |= {"input_ids": batch["teacher_ids"], "position_ids": batch["teacher_positions"], "use_cache": False}
        llm = self.model.llm
        learning = llm.training
        llm.eval()
        logits, _ = counted_logits(llm, inputs, batch["teacher_labels"])
        llm.train(learning)
        return logits

    # --- evaluation

    def plain(self, block: Block) -> Block:
        return {name: column for name, column in block.items() if not name.startswith("teacher")}

    # --- the finished model

    def save(self, model: Any, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """The adapter alone, where the LLM is frozen; else the LLM too, as a plain Hugging Face folder."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        weights = model.state_dict() if state_dict is None else state_dict
        adapter = {name: weight.contiguous() for name, weight in weights.items() if name.startswith("adapter.")}
        save_file(adapter, folder / ADAPTER_FILE, {"format": "pt"})
        if self.llm_learns:
            self.save_llm(model, folder, state_dict)
        model.config.save_pretrained(folder)

    def load(self, folder: Path) -> SpeechLLM:
        """The adapter that `save` wrote, on its LLM."""
        return SpeechLLM(*self.read_parts(folder))

    def facts(self) -> CheckpointFacts:
        config = self.config
        out = config.at(config.out)
        facts = BlspFacts(
            llm=self.llm_reference(),
            encoder=Reference.of(self.source, out),
            layer=self.listens.layer,
            width=self.listens.dim,
            shape=config.adapter,
            template=config.template,
            instructions=config.instructions,
            window=config.window,
        )
        return self.checkpoint_facts(SYSTEM, facts.json())


class TextOpened(Opened):
    """An LLM that is tuned on text instructions: stage 1."""

    config: BlspConfig

    def __init__(self, config: BlspConfig, model: Any, tokenizer: Any) -> None:
        super().__init__(config, model, tokenizer)
        self.template = open_template(config.template, tokenizer)

    def documents(self, source: Source, path: Path) -> Iterator[Documents]:
        import numpy as np

        if form_of(path) == "labels":
            raise ValueError(f"{path} holds recordings; a stage of kind text reads text sets and conversations of text")
        for example in read_examples(path, ""):
            if source.tasks is not None and example.task not in source.tasks:
                continue
            if example.sounds:
                raise ValueError(f"{path} holds recordings; a stage of kind text reads text; name other tasks")
            for one_text in (True, False) if self.config.text_form == "both" else (True,):
                made = row(self.template.document(example.messages, one_text), [], 0)
                ids = np.array(made.ids, np.int32)
                yield Documents(example.task, ids, np.array(made.train, bool), np.array([len(ids)]))

    def cache_key(self, source: Source) -> list[Any]:
        chat = self.tokenizer.chat_template if self.config.template == "chat" else None
        config = self.config
        return [SYSTEM, "text", DOCUMENTS_VERSION, TEMPLATE_VERSION, config.template, config.text_form, chat]

    def collator(self) -> Collator:
        from stages.packing.blocks import flattened, stacked

        return flattened if takes_one_row(self.model) else stacked

    def loss(self, model: Any, batch: dict[str, Any], items: Tensor) -> Tensor:
        inputs = {name: part for name, part in batch.items() if name != "labels"}
        logits, labels = counted_logits(model, {**inputs, "use_cache": False}, batch["labels"])
        return functional.cross_entropy(logits, labels, reduction="sum") / items

    def report(self, model: Any, held_out: PackedBlocks, chosen: Sequence[int]) -> dict[str, float]:
        return held_out_report(model, held_out, chosen, lambda tokens: {"text": tokens >= 0})

    def facts(self) -> CheckpointFacts | None:
        return None


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the next-token distributions, summed over tokens.

    Source: response_kl of github.com/cwang621/blsp-emo, at the positions that predict the answer; there it is one late.

    Args:
        student, teacher: logits (n, V). temperature: divides both.
    """
    likely, wanted = (functional.log_softmax(one / temperature, dim=-1) for one in (student, teacher))
    return functional.kl_div(likely, wanted, reduction="sum", log_target=True)
