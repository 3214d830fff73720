"""The speech decoder of LLaMA-Omni2: a small language model that reads words and writes units, by turns.

    t t t | u u u u u u u u u u | t t t | u u u u u u u u u u | t | sep | u u u u ...   end     (read 3, write 10)

It reads the tokens (t) of `read` words, writes `write` units (u), reads on, and so on. When the text is over it reads
the separator (sep), and writes what is left until the end. Where the units end before the text, the end comes there.

Sources: LLaMA-Omni2, arXiv 2505.02625, section 3.2; llama_omni2/model/speech_generator of
github.com/ictnlp/LLaMA-Omni2 (c8afa90), whose decoder is Qwen2.5-0.5B with CosyVoice's tokens, is sampled, and starts
without a cache at each turn. Here the layers are Llama's of any size, units those of any codebook, the likeliest unit
is written, and a cache holds all that was read and written.

S answers of a batch, A tokens of an answer, U rows of the layers, H width of the LLM, D width of the decoder, K units;
the end is K among the outputs, the separator K among the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from units.dataset.measures.information import edit_distance
from variants.llama_omni.network.decoder import Answers, SpeechDecoder
from variants.llama_omni.network.shapes import DecoderShape, Speaking

NO_TARGET = -100


def turns(tokens: int, units: int, read: int, write: int) -> tuple[list[int], list[int]]:
    """Reading and writing by turns, as a row of the layers.

    Returns: inputs, places in tokens, units and separator, one after the other; and for each input what follows it, a
        number of a unit, `units` for the end, or NO_TARGET where it reads on.
    """
    inputs: list[int] = []
    targets: list[int] = []
    written = 0

    def write_some(most: int) -> bool:
        """Write up to so many units after the last input; whether that was the end."""
        nonlocal written
        for _ in range(most):
            targets[-1] = written
            if written == units:
                return True
            inputs.append(tokens + written)
            targets.append(NO_TARGET)
            written += 1
        return False

    for token in range(tokens):
        inputs.append(token)
        targets.append(NO_TARGET)
        if (token + 1) % read == 0 and write_some(write):
            return inputs, targets
    inputs.append(tokens + units)
    targets.append(NO_TARGET)
    write_some(units + 1)
    return inputs, targets


class AutoregressiveDecoder(SpeechDecoder):
    """A language model of units that reads the LLM's tokens."""

    ends = 1

    def __init__(self, shape: DecoderShape, made_for: Speaking) -> None:
        super().__init__(shape, made_for, normed=True)
        self.unit_embeddings = nn.Embedding(made_for.units + 1, shape.width)  # the last one: the separator

    @property
    def end(self) -> int:
        return self.made_for.units

    def forward(self, tokens: Tensor, answers: Answers) -> tuple[Tensor, Tensor]:
        """Logits of all targets of some answers, float (T, K + 1), and the targets, int64 (T,), answer after answer.

        Args:
            tokens: (n, D), from `tokens`, the answers end to end.
        """
        ends = torch.tensor([self.end], device=answers.units.device)
        rows, targets = [], []
        for said, units in zip(tokens.split(list(answers.lengths)), answers.units.split(list(answers.counts))):
            inputs, follows = turns(len(said), len(units), self.shape.read, self.shape.write)
            table = torch.cat([said, self.unit_embeddings(torch.cat([units, ends]))])
            rows.append(table[torch.tensor(inputs, device=table.device)])
            chosen = torch.tensor(follows, device=units.device)
            symbols = torch.cat([units, ends])[chosen.clamp(min=0)]
            targets.append(symbols.masked_fill(chosen == NO_TARGET, NO_TARGET))
        wanted = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=NO_TARGET)
        hidden = self.hidden(nn.utils.rnn.pad_sequence(rows, batch_first=True))
        counted = wanted != NO_TARGET
        return self.output_proj(hidden[counted]), wanted[counted]

    def loss(self, tokens: Tensor, answers: Answers) -> Tensor:
        logits, targets = self(tokens, answers)
        return functional.cross_entropy(logits.float(), targets, reduction="sum")

    def figures(self, tokens: Tensor, answers: Answers) -> dict[str, float]:
        logits, targets = self(tokens, answers)
        first = answers.units[: answers.counts[0]].tolist()
        (said,) = self.units_of(tokens[: answers.lengths[0]], answers.lengths[:1])
        return {
            "loss": float(functional.cross_entropy(logits.float(), targets, reduction="sum")),
            "targets": len(targets),
            "right": int((logits.argmax(-1) == targets).sum()),
            "units": len(first),
            "wrong": edit_distance(first, said),
            "said": len(said),
        }

    @staticmethod
    def report(sums: Mapping[str, float]) -> dict[str, float]:
        return {
            "dev_unit_loss": round(sums["loss"] / sums["targets"], 4),
            "dev_unit_accuracy": round(sums["right"] / sums["targets"], 4),
            "dev_unit_error": round(sums["wrong"] / sums["units"], 4),
            "dev_length": round(sums["said"] / sums["units"], 3),
        }

    def units_of(self, tokens: Tensor, lengths: Sequence[int]) -> list[list[int]]:
        found = []
        for said in tokens.split(list(lengths)):
            stream = self.stream()
            units = [unit for token in said for unit in stream.read(token)]
            found.append(units + list(stream.finish()))
        return found

    def stream(self) -> WrittenUnits:
        return WrittenUnits(self)


class WrittenUnits:
    """The units of one answer, as its tokens come. See decoder.UnitStream."""

    def __init__(self, decoder: AutoregressiveDecoder) -> None:
        self._decoder, self._cache = decoder, DynamicCache()
        self._waiting: list[Tensor] = []  # inputs that the layers have not read
        self._read = self._written = 0
        self._over = False

    @torch.inference_mode()
    def push(self, state: Tensor, word: Tensor | None = None) -> list[int]:
        return self.read(self._decoder.tokens(state, word))

    def read(self, token: Tensor) -> list[int]:
        """As push, with the token (D,) itself."""
        if self._over:
            return []
        self._waiting.append(token)
        self._read += 1
        shape = self._decoder.shape
        return [] if self._read % shape.read else list(self._write(shape.write))

    def finish(self) -> Iterator[int]:
        """What is left; an answer that does not end is cut at `upsample` units for each token."""
        if self._over or not self._read:
            return
        self._waiting.append(self._embedding(self._decoder.end))
        yield from self._write(self._read * self._decoder.shape.upsample - self._written)

    def _write(self, most: int) -> Iterator[int]:
        """Write up to so many units."""
        for _ in range(most):
            unit = self._next()
            if unit == self._decoder.end:
                self._over = True
                return
            self._written += 1
            self._waiting.append(self._embedding(unit))
            yield unit

    @torch.inference_mode()
    def _next(self) -> int:
        """The likeliest symbol after all that waits."""
        rows, self._waiting = torch.stack(self._waiting)[None], []
        return int(self._decoder.output_proj(self._decoder.hidden(rows, self._cache)[0, -1]).argmax())

    def _embedding(self, symbol: int) -> Tensor:
        return self._decoder.unit_embeddings.weight[symbol].detach()
