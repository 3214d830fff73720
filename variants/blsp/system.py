"""BLSP as the trainer sees it: recordings through an adapter into a frozen LLM, which answers in text.

    python -m variants.blsp.train variants/blsp/configs/toy/stage2.yaml

Of kind text, a stage tunes the LLM itself on text instructions, and saves a plain Hugging Face folder.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from speechgpt.checkpoint import FILE, CheckpointFacts
from speechgpt.sampling import Sampling
from stages.config import Source
from stages.held_out import held_out_report, sample_documents
from stages.packing.attention import BY_DOCUMENT, takes_bounds
from stages.packing.blocks import IGNORED, PackedBlocks
from stages.planning.size import Size, count
from stages.start import check_positions, find_start
from stages.system import Collator, Documents, Opened
from stages.unit_system.start import model_shape
from units.encoder.unit_encoder import Features
from units.runtime.refusals import Refusals
from variants.blsp.adapter import SpeechAdapter, padded
from variants.blsp.config import BlspConfig
from variants.blsp.data.batch import COMMON, Block, collate
from variants.blsp.data.documents import DOCUMENTS_VERSION, Writer, stored
from variants.blsp.data.examples import example_files, form_of, read_examples
from variants.blsp.records import ADAPTER_FILE, SYSTEM, BlspFacts, read_adapter
from variants.blsp.template import TEMPLATE_VERSION, open_template
from variants.encoders import open_encoder, width_of
from variants.listening import Row, SpeechLLM, ends_of, replies, row
from variants.references import STARTER_NAME, Reference, fingerprint, located

LLM_FOLDER = "llm"  # in a finished folder, where the LLM learned
SAMPLING = Sampling(max_new_tokens=64)
SOUND = ("states", "frames", "places")


class BlspOpened(Opened):
    """BLSP at the start of a stage of kind speech.

    start: the LLM's folder. encoder: it listens, and never learns; opened at first use.
    """

    parts = {"adapter": ("adapter.",), "llm": ("llm.",)}
    config: BlspConfig
    model: SpeechLLM

    def __init__(self, config: BlspConfig, model: SpeechLLM, tokenizer: Any, start: Path) -> None:
        super().__init__(config, model, tokenizer)
        self.start = start
        self.template = open_template(config.template, tokenizer)
        self.source = encoder_of(config)

    @functools.cached_property
    def encoder(self) -> Features:
        """The encoder, on the device of the model."""
        return open_encoder(self.source, self.config.encoder_layer, str(self.model.device), self.config.window)

    @property
    def language_model(self) -> Any:
        return self.model.llm

    # --- documents

    def documents(self, source: Source, path: Path) -> Iterator[Documents]:
        config, refusals = self.config, Refusals()
        pad = self.tokenizer.eos_token_id or 0
        writer = Writer(self.template, self.encoder, config.adapter, pad, config.features == "live", config.loss.kl > 0)
        examples = read_examples(path, config.instructions["continue"])
        chosen = (one for one in examples if source.tasks is None or one.task in source.tasks)
        yield from writer.documents(chosen, refusals)
        if refusals.counts:
            print(f"{source.path}: {refusals}", flush=True)

    def files(self, source: Source, path: Path) -> list[Path]:
        return example_files(path, self.config.instructions["continue"])

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
            config.loss.kl > 0,
        ]

    # --- batches and loss

    def collator(self) -> Collator:
        one_row = takes_bounds(self.model.llm) or self.model.llm.config._attn_implementation == BY_DOCUMENT
        return functools.partial(
            collate, one_row=one_row, with_bounds=takes_bounds(self.model.llm), grid=self.encoder.grid
        )

    def loss(self, model: Any, batch: dict[str, Any], items: Tensor) -> Tensor:
        """Cross-entropy with the labels, and divergence from the LLM that reads the transcript, by their weights."""
        weights = self.config.loss
        logits, labels = counted_logits(model, self.inputs(batch), batch["labels"])
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

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model takes of a batch; wavs are encoded."""
        left_out = ("labels", "wavs")
        found = {name: part for name, part in batch.items() if name not in left_out and not name.startswith("teacher_")}
        if "wavs" in batch:
            states = torch.from_numpy(stored(self.encoder, [wav.cpu().numpy() for wav in batch["wavs"]]))
            found["states"] = padded(states.float().split(batch["frames"].tolist()))[0].to(batch["frames"].device)
        return found | {"use_cache": False}

    # --- evaluation

    def report(self, model: Any, held_out: PackedBlocks, blocks: int) -> dict[str, float]:
        return held_out_report(model, held_out, blocks, lambda tokens: {"text": tokens >= 0}, self.logits_of)

    def logits_of(self, model: Any, block: Block) -> Tensor:
        """Logits (1, L, V) of one packed block."""
        plain = {name: column for name, column in block.items() if not name.startswith("teacher")}
        batch = on_device(self.collator()([plain]), self.model.device)
        return model(**self.inputs(batch)).logits

    @torch.no_grad()
    def samples(self, model: Any, held_out: PackedBlocks, count: int) -> list[dict[str, Any]]:
        """Replies to some held-out documents."""
        training = model.training
        model.eval()
        found = []
        for task, source, document in sample_documents(held_out, count):
            tokenised = held_out.sources[source]
            ids, train = tokenised.document(document)
            start = int(train.argmax()) or len(ids)
            columns = {name: torch.from_numpy(tokenised.column(name, document).copy()) for name in tokenised.columns}
            columns |= {f"{name}_start": torch.zeros(len(column)) for name, column in columns.items()}
            block = {name: torch.from_numpy(ids.astype("int64")) for name in COMMON} | columns
            batch = self.inputs(on_device(self.collator()([_without_teacher(block)]), self.model.device))
            frames = batch["frames"].tolist() if "frames" in batch else []
            states = [one[:size] for one, size in zip(batch.get("states", ()), frames)]
            prompt = Row(ids[:start].tolist(), [False] * start, columns["places"].tolist())
            (reply,) = replies(self.model, [prompt], states, ends_of(self.model.llm, self.tokenizer), SAMPLING)
            places = set(prompt.places)
            asked = [token for place, token in enumerate(prompt.ids) if place not in places]
            written, answered, expected = (self.tokenizer.decode(part) for part in (asked, reply, ids[start:]))
            found.append({"task": task, "prompt": written, "reply": answered, "expected": expected})
        model.train(training)
        return found

    # --- the finished model

    @property
    def _llm_learns(self) -> bool:
        return any(weight.requires_grad for weight in self.model.llm.parameters())

    def save(self, model: Any, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """The adapter alone, where the LLM is frozen; else the LLM too, as a plain Hugging Face folder."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        weights = model.state_dict() if state_dict is None else state_dict
        adapter = {name: weight.contiguous() for name, weight in weights.items() if name.startswith("adapter.")}
        save_file(adapter, folder / ADAPTER_FILE, {"format": "pt"})
        if self._llm_learns:
            own = {name.removeprefix("llm."): weight for name, weight in weights.items() if name.startswith("llm.")}
            model.llm.config.use_cache = True
            model.llm.save_pretrained(folder / LLM_FOLDER, state_dict=None if state_dict is None else own)
            self.tokenizer.save_pretrained(folder / LLM_FOLDER)
        model.config.save_pretrained(folder)

    def load(self, folder: Path) -> SpeechLLM:
        """The adapter that `save` wrote, on its LLM."""
        begun = folder / LLM_FOLDER
        llm = AutoModelForCausalLM.from_pretrained(begun if begun.exists() else self.start)
        hidden = llm.config.get_text_config().hidden_size
        adapter = SpeechAdapter(width_of(self.source), hidden, self.config.adapter)
        adapter.load_state_dict(read_adapter(folder))
        return SpeechLLM(llm, adapter)

    def facts(self) -> CheckpointFacts:
        config = self.config
        out = config.at(config.out)
        facts = BlspFacts(
            llm=Reference.of(out / LLM_FOLDER if self._llm_learns else self.start, out),
            encoder=Reference.of(self.source, out),
            layer=self.encoder.layer,
            width=self.encoder.dim,
            shape=config.adapter,
            template=config.template,
            instructions=config.instructions,
            window=config.window,
        )
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        resolved = dataclasses.asdict(config)
        return CheckpointFacts(
            None, config.stage, config=resolved, versions=versions, system=SYSTEM, extra=facts.json()
        )


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

        return flattened if takes_bounds(self.model) else stacked

    def loss(self, model: Any, batch: dict[str, Any], items: Tensor) -> Tensor:
        inputs = {name: part for name, part in batch.items() if name != "labels"}
        logits, labels = counted_logits(model, {**inputs, "use_cache": False}, batch["labels"])
        return functional.cross_entropy(logits, labels, reduction="sum") / items

    def report(self, model: Any, held_out: PackedBlocks, blocks: int) -> dict[str, float]:
        return held_out_report(model, held_out, blocks, lambda tokens: {"text": tokens >= 0})

    def facts(self) -> CheckpointFacts | None:
        return None


class BlspSystem:
    """BLSP: an encoder, an adapter, and an LLM that answers in text."""

    name = SYSTEM

    def completion_file(self, config: Any) -> str:
        """A tuned LLM is a plain Hugging Face folder, without `speechgpt.json`."""
        return "config.json" if config.kind == "text" else FILE

    def open(self, config: Any, **loading: Any) -> Opened:
        """The LLM that the stage starts from, with a new adapter, or with that of an earlier BLSP stage."""
        check_config(config)
        found = Path(find_start(config, whole=True))
        begun = BlspFacts.load(found) if (found / FILE).exists() else None
        start = begun.llm.find(found) if begun else found
        check_positions(start, config)
        tokenizer = AutoTokenizer.from_pretrained(start)
        llm = AutoModelForCausalLM.from_pretrained(start, **loading)
        if config.kind == "text":
            return TextOpened(config, llm, tokenizer)
        return BlspOpened(config, self._joined(config, llm, found, begun), tokenizer, start)

    @staticmethod
    def _joined(config: BlspConfig, llm: Any, found: Path, begun: BlspFacts | None) -> SpeechLLM:
        source = encoder_of(config)
        width = width_of(source)
        words = llm.get_input_embeddings().weight
        gain = float(words.detach().float().std()) if config.norm_gain is None else config.norm_gain
        torch.manual_seed(config.seed)
        adapter = SpeechAdapter(width, llm.config.get_text_config().hidden_size, config.adapter, gain)
        if begun:
            if (begun.shape, begun.encoder.fingerprint) != (config.adapter, fingerprint(located(source))):
                raise ValueError(
                    f"{found} has an adapter of {begun.shape} on {begun.encoder.path}; the config has {config.adapter} "
                    f"on {config.encoder}. Give the same ones"
                )
            adapter.load_state_dict(read_adapter(found))
        return SpeechLLM(llm, adapter)

    def size(self, config: Any, file: Path | None) -> Size:
        check_config(config)
        shape, _ = model_shape(config, file)
        with torch.device("meta"):
            llm = AutoModelForCausalLM.from_config(shape)
            if config.kind == "text":
                return count(llm, shape, config, TextOpened.parts)
            hidden = shape.get_text_config().hidden_size
            model = SpeechLLM(llm, SpeechAdapter(width_of(encoder_of(config)), hidden, config.adapter))
        return count(model, shape, config, BlspOpened.parts, ("the encoder is not counted: it is frozen",))


BLSP_SYSTEM = BlspSystem()


def check_config(config: Any) -> None:
    """Raise ValueError if a config is not of this system."""
    if not isinstance(config, BlspConfig):
        raise ValueError(f"{config.stage} is a {type(config).__name__}; BLSP trains a BlspConfig")


def encoder_of(config: BlspConfig) -> str:
    """The encoder of a config: a folder of its run, or its name as it is."""
    folder = config.at(config.encoder)
    return str(folder) if config.encoder != STARTER_NAME and folder.exists() else config.encoder


def counted_logits(model: Any, inputs: Mapping[str, Any], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits for the counted tokens alone, float (n, V), and these tokens, (n,).

    The output layer is computed at the positions that predict a counted token of any row, which saves most of it.

    Args:
        labels: (B, L), -100 for tokens that are not counted.
    """
    nexts = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    keep = torch.nonzero((nexts != IGNORED).any(0)).flatten()
    chosen = nexts[:, keep]
    logits = model(**inputs, logits_to_keep=keep).logits
    counted = chosen != IGNORED
    return logits[counted].float(), chosen[counted]


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the next-token distributions, summed over tokens.

    Source: response_kl of github.com/cwang621/blsp-emo, at the positions that predict the answer; there it is one late.

    Args:
        student, teacher: logits (n, V). temperature: divides both.
    """
    likely, wanted = (functional.log_softmax(one / temperature, dim=-1) for one in (student, teacher))
    return functional.kl_div(likely, wanted, reduction="sum", log_target=True)


def on_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch on a device."""
    return {name: part.to(device) if isinstance(part, Tensor) else part for name, part in batch.items()}


def _without_teacher(block: Block) -> Block:
    return {name: column for name, column in block.items() if not name.startswith("teacher")}
