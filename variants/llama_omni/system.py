"""LLaMA-Omni as the trainer sees it: an adaptor and an LLM that answer in text, then a speech decoder on its states.

    python -m variants.llama_omni.train variants/llama_omni/configs/toy/stage1.yaml     # kind listening
    python -m variants.llama_omni.train variants/llama_omni/configs/toy/stage2.yaml     # kind speaking

B blocks of a batch, L tokens of a block, S answers, U frames of an answer, K units.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from speechgpt.checkpoint import FILE, CheckpointFacts
from speechgpt.language_models.whole import open_tokenizer, open_whole
from stages.config import Source
from stages.counted import counted_logits
from stages.evaluating import evaluating
from stages.held_out import held_out_report, sample_documents
from stages.packing.attention import takes_bounds
from stages.packing.blocks import PackedBlocks, on_device
from stages.planning.size import Size, count
from stages.start import check_positions, find_start
from stages.system import Collator, Documents
from stages.unit_system.start import model_shape
from units.audio import save_wav
from units.codebook import Codebook, Units
from units.dataset.measures.information import edit_distance
from units.runtime.refusals import Refusals
from units.vocoder.unit_vocoder import UnitVocoder
from variants.encoders import width_of
from variants.llama_omni.config import OmniConfig
from variants.llama_omni.data.batch import collate
from variants.llama_omni.data.documents import DOCUMENTS_VERSION, Writer
from variants.llama_omni.data.examples import Reading, codebook_of, example_files, read_examples
from variants.llama_omni.lora import lora_names, with_lora, without_lora
from variants.llama_omni.network.adaptor import SpeechAdaptor
from variants.llama_omni.network.decoder import Answers, SpeechDecoder
from variants.llama_omni.network.decoders import make_decoder
from variants.llama_omni.network.model import OmniLLM, Wanted
from variants.llama_omni.network.shapes import Speaking
from variants.llama_omni.records import ADAPTOR_FILE, DECODER_FILE, SYSTEM, OmniFacts
from variants.llama_omni.template import TEMPLATE_VERSION, open_template
from variants.references import Reference, fingerprint, located
from variants.speech_in import batch as speech_batch
from variants.speech_in.batch import Block
from variants.speech_in.facts import read_part
from variants.speech_in.stage import LLM_FOLDER, ListeningOpened

PARTS: dict[str, tuple[str, ...]] = {"adaptor": ("adapter.",), "llm": ("llm.",), "decoder": ("decoder.",)}
ASSUMED_UNITS = 1000  # the paper's number, for a plan before there is a codebook


class OmniOpened(ListeningOpened):
    """LLaMA-Omni at the start of a stage of kind listening."""

    parts = PARTS
    config: OmniConfig
    model: OmniLLM
    codebook: Codebook | None = None

    def __init__(self, config: OmniConfig, model: OmniLLM, tokenizer: Any, start: Path) -> None:
        super().__init__(config, model, tokenizer, start)
        self.template = open_template(config.template, tokenizer)
        if config.llm_lora:
            self.parts = PARTS | {"lora": lora_names(model)}

    # --- documents

    @property
    def reading(self) -> Reading:
        """How the examples of a source are read."""
        config = self.config
        return Reading(config.instructions, config.transcripts, config.questions == "written")

    def documents(self, source: Source, path: Path) -> Iterator[Documents]:
        config, refusals = self.config, Refusals()
        pad = self.tokenizer.eos_token_id or 0
        writer = Writer(self.template, self.encoder, config.adaptor, pad, config.features == "live", self.codebook)
        examples = read_examples(path, self.reading)
        chosen = (one for one in examples if source.tasks is None or one.task in source.tasks)
        number = 0
        for number, made in enumerate(writer.documents(chosen, refusals), 1):  # noqa: B007  # counted, and yielded
            yield made
        if refusals.counts:
            share = sum(refusals.counts.values()) / (number + sum(refusals.counts.values()))
            print(f"{source.path}: {refusals}, {share:.1%} of all", flush=True)

    def files(self, source: Source, path: Path) -> list[Path]:
        return example_files(path, self.reading)

    def cache_key(self, source: Source) -> list[Any]:
        config = self.config
        return [
            SYSTEM,
            DOCUMENTS_VERSION,
            TEMPLATE_VERSION,
            config.template,
            getattr(self.tokenizer, "chat_template", None) if config.template == "chat" else None,
            config.instructions,
            config.adaptor.rate,
            config.transcripts,
            [fingerprint(located(self.source)), config.encoder_layer, config.window, config.features],
            None if self.codebook is None else self.codebook.fingerprint,
            *(["written"] if config.questions == "written" else []),
        ]

    # --- batches and loss

    def collator(self) -> Collator:
        return functools.partial(
            speech_batch.collate, one_row=self.one_row, with_bounds=takes_bounds(self.model.llm), grid=self.encoder.grid
        )

    def loss(self, model: Any, batch: dict[str, Any], items: Tensor) -> Tensor:
        """Cross-entropy of the answers' tokens."""
        logits, labels = counted_logits(model, self.inputs(batch), batch["labels"])
        return functional.cross_entropy(logits, labels, reduction="sum") / items

    # --- evaluation

    def report(self, model: Any, held_out: PackedBlocks, blocks: int) -> dict[str, float]:
        return held_out_report(model, held_out, blocks, lambda tokens: {"text": tokens >= 0}, self.logits_of)

    # --- the finished model

    def save(self, model: Any, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """The adaptor, the decoder where there is one, and the LLM where it learned, as a plain Hugging Face folder."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        weights = model.state_dict() if state_dict is None else state_dict
        for file, prefix in ((ADAPTOR_FILE, "adapter."), (DECODER_FILE, "decoder.")):
            part = {name: weight.contiguous() for name, weight in weights.items() if name.startswith(prefix)}
            if part:
                save_file(part, folder / file, {"format": "pt"})
        if self.config.llm_lora:
            with without_lora(model, weights) as (llm, merged):
                llm.config.use_cache = True
                llm.save_pretrained(folder / LLM_FOLDER, state_dict=merged)
            self.tokenizer.save_pretrained(folder / LLM_FOLDER)
        elif self.llm_learns:
            self.save_llm(model, folder, state_dict)
        model.config.save_pretrained(folder)

    def load(self, folder: Path) -> OmniLLM:
        """The parts that `save` wrote, on their LLM."""
        begun = folder / LLM_FOLDER
        llm = open_whole(begun if begun.exists() else self.start)
        adaptor = SpeechAdaptor(width_of(self.source), llm.config.get_text_config().hidden_size, self.config.adaptor)
        adaptor.load_state_dict(read_part(folder, ADAPTOR_FILE, "adapter."))
        decoder = None
        if self.model.decoder is not None:
            decoder = make_decoder(self.model.decoder.shape, self.model.decoder.made_for)
            decoder.load_state_dict(read_part(folder, DECODER_FILE, "decoder."))
        return OmniLLM(llm, adaptor, decoder)

    def facts(self) -> CheckpointFacts:
        config, decoder = self.config, self.model.decoder
        out = config.at(config.out)
        vocoder = None
        if decoder is not None and config.vocoder and config.at(config.vocoder).exists():
            vocoder = Reference.of(config.at(config.vocoder), out)
        facts = OmniFacts(
            llm=self.llm_reference(),
            encoder=Reference.of(self.source, out),
            layer=self.encoder.layer,
            width=self.encoder.dim,
            shape=config.adaptor,
            template=config.template,
            instructions=config.instructions,
            window=config.window,
            decoder=None if decoder is None else decoder.shape,
            speaking=None if decoder is None else decoder.made_for,
            vocoder=vocoder,
            through_text=config.through_text,
        )
        return self.checkpoint_facts(SYSTEM, facts.json(), self.codebook)


class SpeakingOpened(OmniOpened):
    """LLaMA-Omni at the start of a stage of kind speaking.

    codebook: of the units that are learned.
    """

    def __init__(self, config: OmniConfig, model: OmniLLM, tokenizer: Any, start: Path, codebook: Codebook) -> None:
        super().__init__(config, model, tokenizer, start)
        self.codebook = codebook

    def documents(self, source: Source, path: Path) -> Iterator[Documents]:
        assert self.codebook is not None
        found = codebook_of(path)
        if found is not None:
            self.codebook.check_same(found, f"the config's codebook ({self.config.codebook})", str(path))
        yield from super().documents(source, path)

    def collator(self) -> Collator:
        return functools.partial(
            collate, one_row=self.one_row, with_bounds=takes_bounds(self.model.llm), grid=self.encoder.grid
        )

    def items(self, batch: dict[str, Any]) -> Tensor:
        """Target units, and the ends of answers where the decoder says these."""
        assert self.model.decoder is not None
        return batch["unit_counts"].sum() + self.model.decoder.ends * len(batch["unit_counts"])

    def loss(self, model: Any, batch: dict[str, Any], items: Tensor) -> Tensor:
        """The loss of the answers' units, summed, divided by the targets of the whole step."""
        return self.spoken(model, batch, "loss") / items

    def spoken(self, model: Any, batch: dict[str, Any], wanted: Wanted) -> Any:
        """What the decoder makes of the answers of a batch. wanted: as for OmniLLM.forward."""
        inputs = self.inputs(batch)
        for name in ("said", "said_lengths", "units", "unit_counts"):
            inputs.pop(name)
        lengths, counts = batch["said_lengths"].tolist(), batch["unit_counts"].tolist()
        return model(**inputs, answers=Answers(batch["said"], lengths, batch["units"], counts), wanted=wanted)

    def plain(self, block: Block) -> Block:
        left_out = ("said", "said_start", "units", "units_start")
        return {name: column for name, column in block.items() if name not in left_out}

    @torch.no_grad()
    def samples(self, model: Any, held_out: PackedBlocks, count: int) -> list[dict[str, Any]]:
        """What the decoder says of some held-out answers: units, and sound in `samples/` where there is a vocoder."""
        with evaluating(model):
            found = []
            for number, (task, source, document) in enumerate(sample_documents(held_out, count)):
                tokenised = held_out.sources[source]
                length = int(tokenised.lengths[document])
                block = PackedBlocks([(tokenised, np.array([document]), 1.0)], length, None, held_out.pad, 0)[0]
                batch = on_device(self.collator()([block]), self.model.device)
                (said,) = self.spoken(model, batch, "units")
                text = self.tokenizer.decode(batch["input_ids"].flatten()[batch["said"]], skip_special_tokens=True)
                target = batch["units"].tolist()
                sample = {"task": task, "text": text, "units": said, "expected": target}
                found.append(sample | {"unit_error": round(edit_distance(target, said) / len(target), 4)})
                if self.vocoder is not None and said:
                    units = Units(tuple(said), None, self.vocoder.codebook)
                    save_wav(self.config.at(self.config.out) / f"samples/{number}.wav", self.vocoder.decode(units))
        return found

    @functools.cached_property
    def vocoder(self) -> UnitVocoder | None:
        """The vocoder of the config, for samples; None if there is none yet."""
        folder = self.config.vocoder and self.config.at(self.config.vocoder)
        return UnitVocoder.from_pretrained(folder) if folder and (folder / "config.json").exists() else None

    @torch.no_grad()
    def report(self, model: Any, held_out: PackedBlocks, blocks: int) -> dict[str, float]:
        """Figures of the decoder on the first so many held-out blocks (docs/systems/llama-omni.md)."""
        assert self.model.decoder is not None
        sums: dict[str, float] = {}
        with evaluating(model):
            for index in range(min(blocks, len(held_out))):
                batch = on_device(self.collator()([held_out[index]]), self.model.device)
                for name, value in self.spoken(model, batch, "figures").items():
                    sums[name] = sums.get(name, 0.0) + value
        return self.model.decoder.report(sums)


class OmniSystem:
    """LLaMA-Omni: an encoder, an adaptor, an LLM, and a decoder that speaks its states."""

    name = SYSTEM

    def completion_file(self, config: Any) -> str:
        return FILE

    def open(self, config: Any, **loading: Any) -> OmniOpened:
        """The LLM that the stage starts from, with a new adaptor or that of an earlier stage, and, to speak, a new
        decoder or that of an earlier stage."""
        check_config(config)
        codebook = open_codebook(config) if config.kind == "speaking" else None
        found = Path(find_start(config, whole=True))
        begun = OmniFacts.load(found) if (found / FILE).exists() else None
        if config.kind == "speaking" and begun is None:
            raise ValueError(f"{found} does not listen: a stage of kind speaking starts from one of kind listening")
        start = begun.llm.find(found) if begun else found
        check_positions(start, config)
        tokenizer = open_tokenizer(start)
        llm = open_whole(start, **loading)
        model = _joined(config, llm, found, begun)
        if codebook is None:
            if config.llm_lora:
                model.llm = with_lora(model.llm, config.llm_lora)
            return OmniOpened(config, model, tokenizer, start)
        assert begun is not None
        model.decoder = _decoder(config, llm, found, begun, codebook)
        return SpeakingOpened(config, model, tokenizer, start, codebook)

    def size(self, config: Any, file: Path | None) -> Size:
        check_config(config)
        found = config.at(config.model)
        begun = OmniFacts.load(found) if (found / FILE).exists() else None
        where = dataclasses.replace(config, model=str(begun.llm.find(found).resolve())) if begun else config
        shape, _ = model_shape(where, file)
        notes = ["the encoder is not counted: it is frozen"]
        with torch.device("meta"):
            llm = AutoModelForCausalLM.from_config(shape)
            hidden = shape.get_text_config().hidden_size
            model = OmniLLM(llm, SpeechAdaptor(width_of(config.part(config.encoder)), hidden, config.adaptor))
            if config.kind == "speaking":
                units, assumed = _planned_units(config)
                notes += [f"{units} units are assumed: there is no codebook yet"] if assumed else []
                notes.append("the decoder's own frames are not counted among the tokens")
                model.decoder = make_decoder(config.decoder, Speaking.of(shape, units))
            parts = dict(PARTS)
            if config.llm_lora:
                model.llm = with_lora(model.llm, config.llm_lora)
                parts["lora"] = lora_names(model)
        return count(model, shape, config, parts, tuple(notes))


OMNI_SYSTEM = OmniSystem()


def check_config(config: Any) -> None:
    """Raise ValueError if a config is not of this system."""
    if not isinstance(config, OmniConfig):
        raise ValueError(f"{config.stage} is a {type(config).__name__}; LLaMA-Omni trains an OmniConfig")


def open_codebook(config: OmniConfig) -> Codebook:
    """The codebook of the units that a stage learns to speak.

    Raises: FileNotFoundError saying what to make first; ValueError if the vocoder speaks other units.
    """
    from units.vocoder.vocoder_folder import read_vocoder

    folder = config.at(config.codebook)
    if (folder / "codebook.json").exists():
        codebook = Codebook.load(folder / "codebook.json")
    elif (folder / "config.json").exists():
        codebook = read_vocoder(folder, None, None).codebook
    else:
        raise FileNotFoundError(
            f"{folder} has neither a codebook.json nor a vocoder's config.json: {config.stage} learns to speak its "
            "units. Copy the unit encoder that made them there, or name a vocoder of them (codebook:)"
        )
    if config.vocoder and (config.at(config.vocoder) / "config.json").exists():
        spoken = read_vocoder(config.at(config.vocoder), None, None).codebook
        codebook.check_same(spoken, f"the config's codebook ({folder})", f"its vocoder {config.at(config.vocoder)}")
    return codebook


def _joined(config: OmniConfig, llm: Any, found: Path, begun: OmniFacts | None) -> OmniLLM:
    """The LLM with a new adaptor, or with that of an earlier stage."""
    source = config.part(config.encoder)
    width, hidden = width_of(source), llm.config.get_text_config().hidden_size
    torch.manual_seed(config.seed)
    if begun is None:
        words = float(llm.get_input_embeddings().weight.detach().float().std())
        # torch's weights of both layers, and the ReLU between them, give a deviation of states / 18 ** .5
        scale = words * 18**0.5 if config.adaptor_scale is None else config.adaptor_scale
        return OmniLLM(llm, SpeechAdaptor(width, hidden, config.adaptor, scale))
    if (begun.shape, begun.encoder.fingerprint) != (config.adaptor, fingerprint(located(source))):
        raise ValueError(
            f"{found} has an adaptor of {begun.shape} on {begun.encoder.path}; the config has {config.adaptor} on "
            f"{config.encoder}. Give the same ones"
        )
    adaptor = SpeechAdaptor(width, hidden, config.adaptor)
    adaptor.load_state_dict(read_part(found, ADAPTOR_FILE, "adapter."))
    return OmniLLM(llm, adaptor)


def _decoder(config: OmniConfig, llm: Any, found: Path, begun: OmniFacts, codebook: Codebook) -> SpeechDecoder:
    """A new decoder, or that of an earlier stage."""
    torch.manual_seed(config.seed)
    decoder = make_decoder(config.decoder, Speaking.of(llm.config, codebook.size))
    decoder.take_scale(llm.get_input_embeddings().weight.detach())
    if begun.decoder is None:
        return decoder
    if begun.decoder != config.decoder:
        raise ValueError(
            f"{found} has a decoder of {begun.decoder}; the config has {config.decoder}. Give the same one"
        )
    if begun.codebook is not None:
        begun.codebook.check_same(codebook, f"the model {found}", f"the config's codebook ({config.codebook})")
    decoder.load_state_dict(read_part(found, DECODER_FILE, "decoder."))
    return decoder


def _planned_units(config: OmniConfig) -> tuple[int, bool]:
    """How many units there are, and whether that is assumed."""
    try:
        return open_codebook(config).size, False
    except FileNotFoundError:
        return ASSUMED_UNITS, True
