"""The stage of kind ctc: the adapter learns to hear words, from transcripts and the LLM's embedding rows alone.

    python -m variants.blsp.train variants/blsp/configs/toy/hear.yaml

It writes a BLSP folder, from which a stage of kind speech starts, and beside it the head that the words are read off
with (variants.blsp.hear).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.metrics import word_error_rate
from stages.config import Source
from stages.evaluating import evaluating
from stages.held_out import SOME_BLOCKS
from stages.packing.blocks import PackedBlocks, on_device
from stages.planning.size import Size, count
from stages.system import Collator, Documents
from units.runtime.refusals import Refusals
from variants.blsp.adapter import SpeechAdapter
from variants.blsp.config import BlspConfig
from variants.blsp.data.batch import collate
from variants.blsp.data.documents import TranscriptWriter
from variants.blsp.data.examples import read_transcripts
from variants.blsp.data.labels import label_files
from variants.blsp.records import read_adapter
from variants.blsp.stages.ctc import HEAD_FILE, Listener, TokenHead, ctc_loss, embedding_rows, heard, read_head
from variants.blsp.stages.opened import BlspOpened
from variants.encoders import width_of
from variants.listening import SpeechLLMConfig
from variants.speech_in.templates import text_encoder


class CtcOpened(BlspOpened):
    """BLSP at the start of a stage of kind ctc. No LLM runs."""

    parts = {"adapter": ("adapter.", "head.")}
    model: Listener  # type: ignore[assignment]

    @property
    def language_model(self) -> None:
        return None

    # --- documents

    def documents(self, source: Source, path: Path) -> Iterator[Documents]:
        refusals = Refusals()
        yield from self.writer(TranscriptWriter).documents(read_transcripts(path), refusals)
        if refusals.counts:
            print(f"{source.path}: {refusals}", flush=True)

    def files(self, source: Source, path: Path) -> list[Path]:
        return self.files_of(label_files(path), read_transcripts(path))

    def cache_key(self, source: Source) -> list[Any]:
        return [*super().cache_key(source), "ctc"]

    # --- batches and loss

    def collator(self) -> Collator:
        return functools.partial(
            collate, one_row=True, with_bounds=False, grid=self.listens.grid, features=self.feature_set
        )

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
        return [self.config.adapter.embeddings(frames) for frames in batch["frames"].tolist()]

    # --- evaluation

    @torch.no_grad()
    def report(self, model: Any, held_out: PackedBlocks, blocks: int) -> dict[str, float]:
        """Loss of a token, and word error rate, on the first so many held-out blocks."""
        with evaluating(model):
            losses, tokens = 0.0, 0
            pairs: list[tuple[str, str]] = []
            for index in range(min(blocks, len(held_out))):
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
                    found.append({"task": "ctc", "reply": self._text(reply), "expected": self._text(said.tolist())})
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
        super().save(model, folder, weights)
        head = {name.removeprefix("head."): part for name, part in weights.items() if name.startswith("head.")}
        head["tokens"] = model.head.tokens
        save_file({name: part.cpu().contiguous() for name, part in head.items()}, folder / HEAD_FILE, {"format": "pt"})

    def load(self, folder: Path) -> Listener:  # type: ignore[override]
        """The adapter and the head that `save` wrote."""
        rows = embedding_rows(self.start)
        adapter = SpeechAdapter(width_of(self.source), rows.shape[1], self.config.adapter)
        adapter.load_state_dict(read_adapter(folder))
        return Listener(self.model.config, adapter, read_head(folder, rows))


def said_tokens(config: BlspConfig, tokenizer: Any) -> Tensor:
    """The tokens that occur in the transcripts of a config, ascending, int64 (C,).

    Raises: FileNotFoundError if a source does not exist; ValueError if there is no transcript.
    """
    encode = text_encoder(tokenizer).encode
    found: set[int] = set()
    for source in config.data:
        path = config.at(source.path)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; it is named under data: in the config of {config.stage}")
        for example in read_transcripts(path):
            for text in example.transcripts.values():
                found.update(encode(text))
    if not found:
        raise ValueError(f"no recording of {', '.join(one.path for one in config.data)} has a transcript to hear")
    return torch.tensor(sorted(found))


def listener(config: BlspConfig, llm: Any, tokenizer: Any, adapter: SpeechAdapter, speech_config: Any) -> Listener:
    """The model of a stage of kind ctc. Its head is new.

    Args:
        llm: whose embedding rows are heard. speech_config: of a SpeechLLM on it.
    """
    tokens = said_tokens(config, tokenizer)
    rows = llm.get_input_embeddings().weight.detach().float()
    torch.manual_seed(config.seed)
    return Listener(speech_config, adapter, TokenHead(tokens, rows[tokens].clone()))


def ctc_size(config: BlspConfig, adapter: SpeechAdapter, shape: Any) -> Size:
    """The numbers of a stage of kind ctc, for the plan.

    Args:
        adapter: without memory. shape: config of the LLM, whose embedding rows are heard.
    """
    text = shape.get_text_config()
    rows = torch.empty(text.vocab_size, text.hidden_size, device="meta")
    with torch.device("meta"):
        model = Listener(SpeechLLMConfig(), adapter, TokenHead(torch.arange(text.vocab_size), rows))
    notes = ("the encoder is not counted: it is frozen", "no LLM runs: its embedding rows are counted as logits")
    return dataclasses.replace(count(model, shape, config, CtcOpened.parts, notes), layers=1)
