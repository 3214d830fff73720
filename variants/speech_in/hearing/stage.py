"""The stage in which an adapter learns to hear words, from transcripts and the LLM's embedding rows alone.

Its finished folder is one of the system, from which the next stage starts; beside the adapter it has the head that the
words are read off with (hear.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eval.metrics import word_error_rate
from speechgpt.dialogue import Speech
from stages.config import Source
from stages.evaluating import evaluating
from stages.held_out import SOME_BLOCKS
from stages.packing.blocks import PackedBlocks, on_device
from stages.planning.size import Size, count
from stages.system import Collator, Documents
from units.audio import FrameGrid
from units.dataset.feature_set import FeatureSet
from units.runtime.refusals import Refusals
from variants.listening import SpeechLLMConfig
from variants.speech_in import batch as speech_batch
from variants.speech_in.batch import Block, lengths_of
from variants.speech_in.config import ListeningConfig
from variants.speech_in.hearing.ctc import (
    HEAD_FILE,
    HearingModel,
    TokenHead,
    ctc_loss,
    embedding_rows,
    heard,
    read_head,
)
from variants.speech_in.hearing.documents import TranscriptWriter
from variants.speech_in.hearing.transcripts import TASK, examples_of, transcripts_of
from variants.speech_in.stage import ListeningOpened
from variants.speech_in.templates import text_encoder

HEAD = ("head.", "loudness")  # names of the model's weights that are not the adapter's


class HearingOpened(ListeningOpened):
    """A system at the start of a stage that learns to hear words. A system's class has it before that of its other
    stages, which makes and writes the adapter."""

    model: HearingModel  # type: ignore[assignment]

    # --- documents

    def transcripts(self, path: Path) -> Iterable[tuple[Speech, str | None]]:
        """The recordings of a source, and what is said in them."""
        return transcripts_of(path)

    def source_files(self, path: Path) -> list[Path]:
        """The files of a source, without its recordings."""
        return [path]

    @property
    def language_model(self) -> None:
        return None

    def documents(self, source: Source, path: Path) -> Iterator[Documents]:
        refusals, pad = Refusals(), self.tokenizer.eos_token_id or 0
        live = self.config.features == "live"
        writer = TranscriptWriter(self.template, self.listens, self.shape, pad, live)
        yield from writer.documents(examples_of(self.transcripts(path)), refusals)
        if refusals.counts:
            print(f"{source.path}: {refusals}", flush=True)

    def files(self, source: Source, path: Path) -> list[Path]:
        return self.files_of(self.source_files(path), examples_of(self.transcripts(path)))

    def cache_key(self, source: Source) -> list[Any]:
        return [*super().cache_key(source), "ctc"]

    # --- batches and loss

    def collator(self) -> Collator:
        return functools.partial(collate, grid=self.listens.grid, features=self.feature_set)

    def items(self, batch: dict[str, Any]) -> Tensor:
        """Tokens that are said."""
        return batch["said_counts"].sum()

    def loss(self, model: Any, batch: dict[str, Any], items: Tensor) -> Tensor:
        scores = model(**self.heard_inputs(batch, model.training))
        said = self.model.head.columns(batch["said"])
        return ctc_loss(scores, self.counts(batch), said, batch["said_counts"].tolist()) / items

    def heard_inputs(self, batch: dict[str, Any], learning: bool = False) -> dict[str, Tensor]:
        """What the model takes of a batch."""
        inputs = self.inputs(batch, learning)
        return {name: inputs[name] for name in ("states", "frames")}

    def counts(self, batch: dict[str, Any]) -> list[int]:
        """How many embeddings each sound of a batch has."""
        return [self.shape.embeddings(frames) for frames in batch["frames"].tolist()]

    # --- evaluation

    @torch.no_grad()
    def report(self, model: Any, held_out: PackedBlocks, chosen: Sequence[int]) -> dict[str, float]:
        """Loss of a token, and word error rate, on the chosen held-out blocks."""
        with evaluating(model):
            losses, tokens = 0.0, 0
            pairs: list[tuple[str, str]] = []
            for index in chosen:
                batch = on_device(self.collator()([held_out[index]]), self.model.device)
                scores = model(**self.heard_inputs(batch))
                counts = self.counts(batch)
                said = self.model.head.columns(batch["said"])
                losses += float(ctc_loss(scores, counts, said, batch["said_counts"].tolist()))
                tokens += int(batch["said_counts"].sum())
                expected = [part.tolist() for part in batch["said"].split(batch["said_counts"].tolist())]
                pairs += [(self._text(one), self._text(two)) for one, two in zip(expected, self._heard(scores, counts))]
        rate = word_error_rate([one for one, _ in pairs], [two for _, two in pairs]).value
        report = {"dev_ctc_loss": round(losses / max(1, tokens), 4)}
        return report | ({} if rate is None else {"dev_wer": round(rate, 4)})

    @torch.no_grad()
    def samples(self, model: Any, held_out: PackedBlocks, count: int) -> list[dict[str, Any]]:
        """What is heard in some held-out recordings."""
        with evaluating(model):
            found: list[dict[str, Any]] = []
            for index in range(min(SOME_BLOCKS, len(held_out))):
                batch = on_device(self.collator()([held_out[index]]), self.model.device)
                replies = self._heard(model(**self.heard_inputs(batch)), self.counts(batch))
                expected = batch["said"].split(batch["said_counts"].tolist())
                for said, reply in zip(expected, replies):
                    found.append({"task": TASK, "reply": self._text(reply), "expected": self._text(said.tolist())})
                if len(found) >= count:
                    break
        return found[:count]

    def _heard(self, scores: Tensor, counts: list[int]) -> list[list[int]]:
        return heard(scores, counts, self.model.head.tokens)

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids).strip()

    # --- the finished model

    @property
    def llm_learns(self) -> bool:
        return False

    def save(self, model: Any, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """The adapter, and the head."""
        from safetensors.torch import save_file

        weights = model.state_dict() if state_dict is None else state_dict
        super().save(model, folder, {name: part for name, part in weights.items() if not name.startswith(HEAD)})
        head = {name.removeprefix("head."): part for name, part in weights.items() if name.startswith("head.")}
        head["tokens"] = model.head.tokens
        save_file({name: part.cpu().contiguous() for name, part in head.items()}, folder / HEAD_FILE, {"format": "pt"})

    def load(self, folder: Path) -> HearingModel:  # type: ignore[override]
        """The adapter and the head that `save` wrote."""
        rows = embedding_rows(self.start)
        adapter = self.new_adapter(rows.shape[1])
        adapter.load_state_dict(self.read_adapter(folder))
        return HearingModel(self.model.config, adapter, read_head(folder, rows))


def collate(blocks: list[Block], grid: FrameGrid, features: FeatureSet | None = None) -> dict[str, Any]:
    """As variants.speech_in.batch.collate, in one row; also said, the tokens of all transcripts, and said_counts (S,),
    both int64."""
    made = speech_batch.collate(blocks, True, False, grid, features)
    made["said"] = torch.cat([block["said"].long() for block in blocks])
    made["said_counts"] = torch.tensor([size for block in blocks for size in lengths_of(block["said_start"])])
    return made


def hearing_model(
    config: ListeningConfig, llm: Any, tokenizer: Any, model: Any, transcripts: Iterable[tuple[Speech, str | None]]
) -> HearingModel:
    """The model of a stage. Its head is new, of the tokens that occur in the transcripts.

    Args:
        llm: whose embedding rows are heard. model: the system's, with the adapter. transcripts: of all sources.

    Raises: ValueError if there is no transcript.
    """
    encode = text_encoder(tokenizer).encode
    said = {token for one in examples_of(transcripts) for text in one.transcripts.values() for token in encode(text)}
    if not said:
        raise ValueError(f"no recording of {', '.join(one.path for one in config.data)} has a transcript to hear")
    tokens = torch.tensor(sorted(said))
    rows = llm.get_input_embeddings().weight.detach().float()
    torch.manual_seed(config.seed)
    return HearingModel(model.config, model.adapter, TokenHead(tokens, rows[tokens].clone()))


def found_sources(config: ListeningConfig) -> Iterator[Path]:
    """The sources of a config.

    Raises: FileNotFoundError if one does not exist.
    """
    for source in config.data:
        path: Path = config.at(source.path)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; it is named under data: in the config of {config.stage}")
        yield path


def hearing_size(config: ListeningConfig, adapter: nn.Module, shape: Any, parts: Mapping[str, Any]) -> Size:
    """The numbers of a stage, for the plan.

    Args:
        adapter: without memory. shape: config of the LLM, whose embedding rows are heard. parts: of the stage.
    """
    text = shape.get_text_config()
    rows = torch.empty(text.vocab_size, text.hidden_size, device="meta")
    with torch.device("meta"):
        model = HearingModel(SpeechLLMConfig(), adapter, TokenHead(torch.arange(text.vocab_size), rows))
    notes = ("the encoder is not counted: it is frozen", "no LLM runs: its embedding rows are counted as logits")
    return dataclasses.replace(count(model, shape, config, parts, notes), layers=1)
