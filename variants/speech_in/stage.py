"""A stage of a system that listens: what every such system does between the trainer and its own loss.

B blocks of a batch, L tokens of a block, S sounds, N frames of a sound, D width of the encoder's states.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechgpt.checkpoint import CheckpointFacts
from speechgpt.language_models.whole import open_whole
from speechgpt.sampling import Sampling
from stages.evaluating import evaluating
from stages.held_out import held_out_report, sample_documents
from stages.packing.attention import takes_bounds, takes_one_row
from stages.packing.blocks import PackedBlocks, on_device
from stages.system import Collator, Opened
from units.codebook import Codebook
from units.dataset.feature_set import COMPLETION_FILE, FeatureSet, read_feature_set
from units.encoder.states import depth
from units.encoder.unit_encoder import Features
from variants.encoders import open_encoder
from variants.listening import Row, SpeechLLM, ends_of, padded, replies
from variants.references import Reference, fingerprint, located
from variants.speech_in.batch import COMMON, Block
from variants.speech_in.config import Disturbance, ListeningConfig
from variants.speech_in.documents import AdapterShape, stored
from variants.speech_in.examples import Example
from variants.speech_in.templates import Template

LLM_FOLDER = "llm"  # in a finished folder, where the LLM learned
SAMPLING = Sampling(max_new_tokens=64)
SPAN = 0.2  # seconds of a span that a disturbance sets to 0


class ListeningOpened(Opened):
    """A system that listens at the start of a stage.

    start: the LLM's folder. encoder: it listens, and never learns; opened at first use.
    """

    config: ListeningConfig
    model: SpeechLLM
    template: Template

    def __init__(self, config: ListeningConfig, model: SpeechLLM, tokenizer: Any, start: Path) -> None:
        super().__init__(config, model, tokenizer)
        self.start = start
        self.source = config.part(config.encoder)

    # --- the adapter

    @property
    @abstractmethod
    def shape(self) -> AdapterShape:
        """Shape of the adapter."""

    @abstractmethod
    def new_adapter(self, hidden: int) -> nn.Module:
        """An adapter before an LLM of width `hidden`."""

    @abstractmethod
    def read_adapter(self, folder: Path) -> Mapping[str, Tensor]:
        """The weights of a finished folder's adapter."""

    def read_parts(self, folder: Path) -> tuple[Any, Any]:
        """The LLM and the adapter of a finished folder: the LLM in it where it learned, else where it was."""
        begun = folder / LLM_FOLDER
        llm = open_whole(begun if begun.exists() else self.start)
        adapter = self.new_adapter(llm.config.get_text_config().hidden_size)
        adapter.load_state_dict(self.read_adapter(folder))
        return llm, adapter

    # --- the encoder

    @functools.cached_property
    def encoder(self) -> Features:
        """The encoder, on the device of the model."""
        return open_encoder(self.source, self.config.encoder_layer, str(self.model.device), self.config.window)

    @functools.cached_property
    def feature_set(self) -> FeatureSet | None:
        """The states of all recordings, for features: FOLDER.

        Raises: FileNotFoundError if it is not complete; ValueError if it is of another encoder, layer or window.
        """
        config = self.config
        if config.features in ("cached", "live"):
            return None
        found = read_feature_set(config.at(config.features))
        listens = located(self.source)
        asked = (fingerprint(listens), config.encoder_layer or depth(listens), config.window)
        if (found.fingerprint, found.layer, found.window) != asked:
            raise ValueError(
                f"{found.folder} holds states of {found.encoder}, layer {found.layer}, window {found.window} "
                f"({found.fingerprint}); the config asks for {config.encoder}, layer {asked[1]}, window {asked[2]} "
                f"({asked[0]}). Extract again, or change the config"
            )
        return found

    @property
    def listens(self) -> Features | FeatureSet:
        """What has the encoder's grid, layer and width: a feature set saves opening the encoder."""
        return self.feature_set or self.encoder

    def files_of(self, sources: Sequence[Path], examples: Iterable[Example]) -> list[Path]:
        """All files that decide documents: their source's, and the recordings, or the feature set that has them."""
        if self.feature_set:
            folder = self.feature_set.folder
            return [*sources, folder / COMPLETION_FILE, *sorted(folder.glob("shard-*.parquet"))]
        recordings = {Path(one.audio) for example in examples for one in example.sounds}
        return [*sources, *sorted(path for path in recordings if path.is_file())]  # others will be refused

    @property
    def language_model(self) -> Any:
        return self.model.llm

    # --- batches

    def collator_of(self, collate: Callable[..., dict[str, Any]]) -> Collator:
        """A collator by a function with the arguments of variants.speech_in.batch.collate."""
        return functools.partial(
            collate,
            one_row=takes_one_row(self.model.llm),
            with_bounds=takes_bounds(self.model.llm),
            grid=self.listens.grid,
            features=self.feature_set,
        )

    def inputs(self, batch: dict[str, Any], learning: bool = False) -> dict[str, Any]:
        """What the model takes of a batch; wavs are encoded. learning: the states are disturbed, as the config says."""
        left_out = ("labels", "wavs")
        found = {name: part for name, part in batch.items() if name not in left_out and not name.startswith("teacher_")}
        if "wavs" in batch:
            states = torch.from_numpy(stored(self.encoder, [wav.cpu().numpy() for wav in batch["wavs"]]))
            found["states"] = padded(states.float().split(batch["frames"].tolist()))[0].to(batch["frames"].device)
        if learning and self.config.disturbance and "states" in found:
            span = max(1, round(SPAN * self.listens.grid.rate))
            found["states"] = disturbed(found["states"], found["frames"], self.config.disturbance, span)
        return found | {"use_cache": False}

    # --- evaluation

    def report(self, model: Any, held_out: PackedBlocks, chosen: Sequence[int]) -> dict[str, float]:
        return held_out_report(model, held_out, chosen, lambda tokens: {"text": tokens >= 0}, self.logits_of)

    def plain(self, block: Block) -> Block:
        """A block without the columns that a reply does not need."""
        return block

    def logits_of(self, model: Any, block: Block) -> Tensor:
        """Logits (1, L, V) of one packed block."""
        batch = on_device(self.collator()([self.plain(block)]), self.model.device)
        return model(**self.inputs(batch)).logits

    @torch.no_grad()
    def samples(self, model: Any, held_out: PackedBlocks, count: int) -> list[dict[str, Any]]:
        """Replies to some held-out documents."""
        with evaluating(model):
            found = []
            for task, source, document in sample_documents(held_out, count):
                tokenised = held_out.sources[source]
                ids, train = tokenised.document(document)
                start = int(train.argmax()) or len(ids)
                columns = {
                    name: torch.from_numpy(tokenised.column(name, document).copy()) for name in tokenised.columns
                }
                columns |= {f"{name}_start": torch.zeros(len(column)) for name, column in columns.items()}
                block = {name: torch.from_numpy(ids.astype("int64")) for name in COMMON} | columns
                batch = self.inputs(on_device(self.collator()([self.plain(block)]), self.model.device))
                frames = batch["frames"].tolist() if "frames" in batch else []
                states = [one[:size] for one, size in zip(batch.get("states", ()), frames)]
                prompt = Row(ids[:start].tolist(), [False] * start, columns["places"].tolist())
                (reply,) = replies(self.model, [prompt], states, ends_of(self.model.llm, self.tokenizer), SAMPLING)
                places = set(prompt.places)
                asked = [token for place, token in enumerate(prompt.ids) if place not in places]
                written, answered, expected = (self.tokenizer.decode(part) for part in (asked, reply, ids[start:]))
                found.append({"task": task, "prompt": written, "reply": answered, "expected": expected})
        return found

    # --- the finished model

    @property
    def llm_learns(self) -> bool:
        """Whether a weight of the LLM learns."""
        return any(weight.requires_grad for weight in self.model.llm.parameters())

    def save_llm(self, model: Any, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
        """Write the LLM as a plain Hugging Face folder in a model folder; arguments as for `save`."""
        own = None
        if state_dict is not None:
            own = {name.removeprefix("llm."): part for name, part in state_dict.items() if name.startswith("llm.")}
        model.llm.config.use_cache = True
        model.llm.save_pretrained(folder / LLM_FOLDER, state_dict=own)
        self.tokenizer.save_pretrained(folder / LLM_FOLDER)

    def llm_reference(self) -> Reference:
        """The LLM of the finished model: in its folder where it learned, else where it was."""
        out = self.config.at(self.config.out)
        return Reference.of(out / LLM_FOLDER if self.llm_learns else self.start, out)

    def checkpoint_facts(self, system: str, extra: dict[str, Any], codebook: Codebook | None = None) -> CheckpointFacts:
        """The content of `speechgpt.json`."""
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        resolved = dataclasses.asdict(self.config)
        return CheckpointFacts(
            codebook, self.config.stage, config=resolved, versions=versions, system=system, extra=extra
        )


def disturbed(states: Tensor, frames: Tensor, how: Disturbance, span: int) -> Tensor:
    """States with noise, and with spans of frames and with channels set to 0, of other random numbers at each call.

    Args:
        states: (S, N, D), padded at the end. frames: int64 (S,).
        span: frames of a span.
    """
    sounds, longest, width = states.shape
    inside = torch.arange(longest, device=states.device) < frames[:, None]
    if how.noise:
        deviation = states[inside].std()
        states = states + how.noise * deviation * torch.randn_like(states) * inside[..., None]
    if how.time:
        begun = torch.rand(sounds, longest, device=states.device) < how.time / span
        kept = torch.ones(sounds, longest, device=states.device)
        for shift in range(span):
            kept[:, shift:] *= ~begun[:, : max(0, longest - shift)]
        states = states * kept[..., None]
    if how.channels:
        states = states * (torch.rand(sounds, 1, width, device=states.device) >= how.channels)
    return states
