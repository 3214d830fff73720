"""The speech decoder of LLaMA-Omni: all units of a token at once, by connectionist temporal classification.

    tokens (A, D) -> each repeated (U, D) -> causal Llama layers -> Linear (U, K + 1) -> units

It attends to earlier frames alone, so a token's frames can be decoded as soon as the LLM has chosen the token. With a
cache of keys and values a token costs the same at the end of an answer as at its start, but for attention itself.
There is no norm after the last layer, as upstream.

Source: omni_speech/model/speech_generator of github.com/ictnlp/LLaMA-Omni (c63fd72).

S answers of a batch, A tokens of an answer, U frames, H width of the LLM, D width of the decoder, K units; the blank
is K.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from units.dataset.measures.information import edit_distance
from variants.llama_omni.network.ctc import CtcStream, collapse, ctc_loss, frames_needed, frames_of, spread
from variants.llama_omni.network.decoder import Answers, SpeechDecoder
from variants.llama_omni.network.shapes import DecoderShape, Speaking


class CtcDecoder(SpeechDecoder):
    """Causal layers over upsampled tokens."""

    def __init__(self, shape: DecoderShape, made_for: Speaking) -> None:
        super().__init__(shape, made_for, normed=False)

    @property
    def blank(self) -> int:
        return self.made_for.units

    def forward(self, tokens: Tensor, lengths: Sequence[int], frames: Sequence[int]) -> Tensor:
        """Logits of all frames of some answers, float (S, U, K + 1); those beyond an answer's frames mean nothing.

        Args:
            tokens: (sum of lengths, D), from `tokens`, the answers end to end.
            lengths: tokens of each answer. frames: of each answer.
        """
        rows = [
            part[spread(length, count).to(part.device)]
            for part, length, count in zip(tokens.split(list(lengths)), lengths, frames)
        ]
        return self.output_proj(self.hidden(nn.utils.rnn.pad_sequence(rows, batch_first=True)))

    def loss(self, tokens: Tensor, answers: Answers) -> Tensor:
        frames = self._frames(answers)
        return self._loss(self(tokens, answers.lengths, frames), frames, answers)

    def figures(self, tokens: Tensor, answers: Answers) -> dict[str, float]:
        frames = self._frames(answers)
        logits = self(tokens, answers.lengths, frames)
        loss = float(self._loss(logits, frames, answers))
        blanks = wrong = refused = 0
        targets = [row.tolist() for row in answers.units.split(list(answers.counts))]
        for said, count, target, length in zip(logits.argmax(-1), frames, targets, answers.lengths, strict=True):
            symbols = said[:count].tolist()
            blanks += symbols.count(self.blank)
            wrong += edit_distance(target, collapse(symbols, self.blank))
            refused += frames_needed(target) > length * self.shape.upsample
        sums = {"loss": loss, "units": sum(answers.counts), "answers": len(frames), "frames": sum(frames)}
        return sums | {"blanks": blanks, "wrong": wrong, "refused": refused}

    @staticmethod
    def report(sums: Mapping[str, float]) -> dict[str, float]:
        return {
            "dev_unit_loss": round(sums["loss"] / sums["units"], 4),
            "dev_blank_share": round(sums["blanks"] / sums["frames"], 4),
            "dev_unit_error": round(sums["wrong"] / sums["units"], 4),
            "dev_frames_a_unit": round(sums["frames"] / sums["units"], 3),
            "dev_refused_targets": round(sums["refused"] / sums["answers"], 4),
        }

    @torch.inference_mode()
    def units_of(self, tokens: Tensor, lengths: Sequence[int]) -> list[list[int]]:
        frames = [length * self.shape.upsample for length in lengths]
        symbols = self(tokens, lengths, frames).argmax(-1).cpu()
        return [collapse(row[:count].tolist(), self.blank) for row, count in zip(symbols, frames)]

    def stream(self) -> CtcUnits:
        return CtcUnits(self)

    def _frames(self, answers: Answers) -> list[int]:
        """Frames of each answer in training."""
        targets = answers.units.cpu().split(list(answers.counts))
        upsample = self.shape.upsample
        return [frames_of(length, row.tolist(), upsample) for length, row in zip(answers.lengths, targets, strict=True)]

    def _loss(self, logits: Tensor, frames: Sequence[int], answers: Answers) -> Tensor:
        device = logits.device
        counts = torch.tensor(answers.counts, device=device)
        return ctc_loss(logits, torch.tensor(frames, device=device), answers.units, counts)


class FrameStream:
    """One answer, decoded as its tokens come: the frames equal those of the whole answer."""

    def __init__(self, decoder: CtcDecoder) -> None:
        self._decoder, self._cache = decoder, DynamicCache()

    @torch.inference_mode()
    def push(self, state: Tensor, word: Tensor | None = None) -> Tensor:
        """Logits of the frames of the next token, float (upsample, K + 1).

        Args:
            state: (H,), which predicts the token. word: (H,), the token's embedding, where the decoder reads words.
        """
        decoder = self._decoder
        row = decoder.tokens(state, word).expand(1, decoder.shape.upsample, -1)
        return decoder.output_proj(decoder.hidden(row, self._cache))[0]


class CtcUnits:
    """The units of one answer, as its tokens come. See decoder.UnitStream."""

    def __init__(self, decoder: CtcDecoder) -> None:
        self._frames, self._ctc = FrameStream(decoder), CtcStream(decoder.blank)

    def push(self, state: Tensor, word: Tensor | None = None) -> list[int]:
        return self._ctc.push(self._frames.push(state, word).argmax(-1).tolist())

    def finish(self) -> Iterator[int]:
        return iter(())
