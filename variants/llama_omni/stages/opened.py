"""LLaMA-Omni at the start of a stage of kind listening: an adaptor before an LLM, which learn to answer in text.

python -m variants.llama_omni.train variants/llama_omni/configs/toy/stage1.yaml
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from speechgpt.checkpoint import CheckpointFacts
from stages.config import Source
from stages.counted import counted_logits
from stages.system import Collator, Documents
from units.codebook import Codebook
from units.runtime.refusals import Refusals
from variants.encoders import width_of
from variants.llama_omni.config import OmniConfig
from variants.llama_omni.data.documents import DOCUMENTS_VERSION, Writer
from variants.llama_omni.data.examples import Reading, read_examples
from variants.llama_omni.lora import lora_names, without_lora
from variants.llama_omni.network.adaptor import SpeechAdaptor
from variants.llama_omni.network.decoder import SpeechDecoder
from variants.llama_omni.network.decoders import make_decoder
from variants.llama_omni.network.model import OmniLLM
from variants.llama_omni.network.shapes import AdaptorShape
from variants.llama_omni.records import ADAPTOR_FILE, DECODER_FILE, SYSTEM, OmniFacts
from variants.llama_omni.template import TEMPLATE_VERSION, open_template
from variants.references import Reference, fingerprint, located
from variants.speech_in import batch as speech_batch
from variants.speech_in.facts import read_part
from variants.speech_in.stage import LLM_FOLDER, ListeningOpened

PARTS: dict[str, tuple[str, ...]] = {"adaptor": ("adapter.",), "llm": ("llm.",), "decoder": ("decoder.",)}


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

    # --- the adaptor

    @property
    def shape(self) -> AdaptorShape:
        return self.config.adaptor

    def new_adapter(self, hidden: int) -> SpeechAdaptor:
        return SpeechAdaptor(width_of(self.source), hidden, self.shape)

    def read_adapter(self, folder: Path) -> Mapping[str, Tensor]:
        return read_part(folder, ADAPTOR_FILE, "adapter.")

    @property
    def decoder(self) -> SpeechDecoder | None:
        """The speech decoder, where there is one."""
        return self.model.decoder

    # --- documents

    @property
    def reading(self) -> Reading:
        """How the examples of a source are read."""
        config = self.config
        return Reading(config.instructions, config.transcripts, config.questions == "written")

    def documents(self, source: Source, path: Path) -> Iterator[Documents]:
        config, refusals = self.config, Refusals()
        pad = self.tokenizer.eos_token_id or 0
        writer = Writer(self.template, self.listens, config.adaptor, pad, config.features == "live", self.codebook)
        examples = read_examples(path, self.reading)
        chosen = (one for one in examples if source.tasks is None or one.task in source.tasks)
        number = 0
        for number, made in enumerate(writer.documents(chosen, refusals), 1):  # noqa: B007  # counted, and yielded
            yield made
        if refusals.counts:
            share = sum(refusals.counts.values()) / (number + sum(refusals.counts.values()))
            print(f"{source.path}: {refusals}, {share:.1%} of all", flush=True)

    def files(self, source: Source, path: Path) -> list[Path]:
        return self.files_of([path], read_examples(path, self.reading))

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
        return self.collator_of(speech_batch.collate)

    def loss(self, model: Any, batch: dict[str, Any], items: Tensor) -> Tensor:
        """Cross-entropy of the answers' tokens."""
        logits, labels = counted_logits(model, self.inputs(batch, model.training), batch["labels"])
        return functional.cross_entropy(logits, labels, reduction="sum") / items

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
        llm, adaptor = self.read_parts(folder)
        decoder = None
        if self.decoder is not None:
            decoder = make_decoder(self.decoder.shape, self.decoder.made_for)
            decoder.load_state_dict(read_part(folder, DECODER_FILE, "decoder."))
        return OmniLLM(llm, adaptor, decoder)

    def facts(self) -> CheckpointFacts:
        config, decoder = self.config, self.decoder
        out = config.at(config.out)
        vocoder = None
        if decoder is not None and config.vocoder and config.at(config.vocoder).exists():
            vocoder = Reference.of(config.at(config.vocoder), out)
        facts = OmniFacts(
            llm=self.llm_reference(),
            encoder=Reference.of(self.source, out),
            layer=self.listens.layer,
            width=self.listens.dim,
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
