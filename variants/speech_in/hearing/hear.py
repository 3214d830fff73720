"""What an adapter hears, word for word: read off by the head of a hearing stage. No LLM runs.

A line out has `id`, `audio`, `response`, and where the text is known `reference`; with texts, the word error rate is
printed. Recordings that cannot be used are listed in OUT.refused.jsonl, and the exit code is 3.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from units.runtime.command import SOME_REFUSED, check_range

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from units.corpus.manifest import Utterance


def write_heard(hearer: Hearer, utterances: list[Utterance], out: Path, batch: int) -> int | None:
    """Write down what an adapter hears in recordings.

    Args:
        out: the JSON lines to write. batch: recordings at once.

    Returns: SOME_REFUSED if some recordings could not be used.
    """
    from eval.metrics import word_error_rate
    from units.corpus.decoding import decoded
    from units.runtime.files.atomic import written_whole
    from units.runtime.progress import progress
    from units.runtime.refusals import Refusal, listed_refusals

    check_range("batch", batch, 1)
    pairs: list[tuple[str, str]] = []
    with listed_refusals(out.with_name(f"{out.name}.refused.jsonl")) as refusals, written_whole(out) as file:
        rows = zip(utterances, decoded(utterances, 0, hearer.grid, keep_silent=False))
        bar = iter(progress(rows, desc="heard", unit="recordings", total=len(utterances)))
        while some := list(itertools.islice(bar, batch)):
            for _, wav in some:
                if isinstance(wav, Refusal):
                    refusals.add(wav.id, wav.reason, wav.detail, wav.audio)
            kept = [(utterance, wav) for utterance, wav in some if not isinstance(wav, Refusal)]
            for (utterance, _), response in zip(kept, hearer.hear([wav for _, wav in kept])):
                record = {"id": utterance.id, "audio": str(utterance.audio), "response": response}
                if utterance.text:
                    record["reference"] = utterance.text
                    pairs.append((utterance.text, response))
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    score = word_error_rate([one for one, _ in pairs], [two for _, two in pairs])
    told = "" if score.value is None else f"word error rate {score.value:.3f} +- {score.standard_error or 0:.3f}, "
    print(f"{len(utterances)} recordings: {told}{refusals} -> {out}")
    return SOME_REFUSED if refusals.counts else None


class Hearer:
    """An adapter and the head that reads tokens off it."""

    def __init__(
        self, folder: Path, facts: Any, kind: type[nn.Module], weights: Mapping[str, Tensor], device: str = "cpu"
    ) -> None:
        """Open the folder of a hearing stage.

        Args:
            facts: of the folder: llm, encoder, layer, window and shape, as every system that listens has them.
            kind: class of the adapter. weights: its own, of the folder.

        Raises: FileNotFoundError if a file is missing; ValueError if one is damaged, or of another LLM or encoder.
        """
        from speechgpt.language_models.whole import open_tokenizer
        from units.runtime.precision import check_device
        from variants.encoders import open_encoder
        from variants.speech_in.hearing.ctc import embedding_rows, read_head

        check_device(device)
        llm = facts.llm.find(folder)
        rows = embedding_rows(llm)
        self.head = read_head(folder, rows).to(device)
        adapter = kind(facts.width, rows.shape[1], facts.shape)
        adapter.load_state_dict(weights)
        self.adapter = adapter.to(device).eval()
        self.tokenizer = open_tokenizer(llm)
        self.encoder = open_encoder(str(facts.encoder.find(folder)), facts.layer, device, facts.window)
        self.shape, self.device, self.grid = facts.shape, device, self.encoder.grid

    def hear(self, wavs: Sequence[np.ndarray]) -> list[str]:
        """What is said in wavs (T,), as text."""
        import torch

        from variants.listening import padded
        from variants.speech_in.hearing.ctc import heard

        if not wavs:
            return []
        with torch.inference_mode():
            states = self.encoder(list(wavs))
            batch, frames = padded([one.half().float() for one in states])  # as training reads them
            scores = self.head(self.adapter(batch.to(self.device), frames.to(self.device)))
        counts = [self.shape.embeddings(len(one)) for one in states]
        return [self.tokenizer.decode(ids).strip() for ids in heard(scores, counts, self.head.tokens)]
