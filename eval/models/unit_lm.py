"""Any causal language model over units, measured without a file of ours: slamkit's, TWIST's, Spirit LM's, ...

    eval-run --model lm:FOLDER --units.encoder ENCODER --units.spelling '<Un{}>' --corpus SUITES --out results

It scores sounds and does nothing else. Units that are no word of the vocabulary are refused when the model is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.models.spelling import Speaking
from speechgpt.answers import Likelihood, Sound
from units.audio import SAMPLE_RATE, load_wav
from units.codebook import Codebook, Units
from units.runtime.provenance import digest, fingerprint

if TYPE_CHECKING:
    from units.encoder.unit_encoder import UnitEncoder


class SpellingError(ValueError):
    """A model's vocabulary does not have the units as they are spelled."""


class UnitLM:
    """A causal language model, a unit encoder, and the words between them: a speechgpt.answers.ScoresSpeech.

    Args:
        model: of transformers. tokenizer: its tokenizer.
        encoder: makes the units.
        speaking: how they are spelled.
        name: of the model and its weights.

    Raises:
        SpellingError: the vocabulary lacks units, or the words before them.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, model: Any, tokenizer: Any, encoder: UnitEncoder, speaking: Speaking, name: str) -> None:
        self.model, self.encoder, self.speaking = model, encoder, speaking
        self._name = name
        words = tokenizer.get_vocab()
        spelled = [speaking.spelling.replace("{}", str(unit)) for unit in range(encoder.codebook.size)]
        if missing := [word for word in [*spelled, *speaking.before.split()] if word not in words]:
            raise SpellingError(
                f"the vocabulary of {name} lacks {len(missing)} of {len(spelled)} units, such as {missing[0]}; it has "
                f"words such as {', '.join(list(words)[-3:])}. Give --units.spelling, --units.before, and the unit "
                "encoder that the model was trained with"
            )
        start = getattr(tokenizer, "bos_token_id", None)
        self._context = [token for token in (start,) if token is not None]
        self._context += [words[word] for word in speaking.before.split()]
        self._unit_ids = [words[word] for word in spelled]

    @cached_property
    def name(self) -> str:
        """The model, and how units are spelled for it."""
        settings = digest([repr(self.speaking), self.codebook.fingerprint], 6)
        return f"{self._name} on {self.codebook.name} {settings}"

    @property
    def codebook(self) -> Codebook:
        """Of the units."""
        return self.encoder.codebook

    def likelihoods(self, sounds: Sequence[Sound]) -> list[Likelihood]:
        """See speechgpt.answers.ScoresSpeech."""
        from speechgpt.generation.likelihood import Row, log_likelihoods

        wavs = [sound if isinstance(sound, np.ndarray) else load_wav(sound) for sound in sounds]
        rows = [Row(self._context, self._tokens(units)) for units in self.encoder.encode_batch(wavs)]
        return log_likelihoods(self.model, rows)

    def _tokens(self, units: Units) -> list[int]:
        durations = units.durations or (1,) * len(units.ids)
        times = durations if self.speaking.repeats else (1,) * len(units.ids)
        return [self._unit_ids[unit] for unit, count in zip(units.ids, times) for _ in range(count)]


def open_unit_lm(folder: str, speaking: Speaking, device: str) -> UnitLM:
    """Open a causal language model over units.

    Args:
        folder: of transformers, or a hub id.
        speaking: its unit encoder and spelling.
        device: where it runs.

    Raises:
        ValueError: there is no unit encoder, or the vocabulary does not have the units.
        FileNotFoundError: there is no such model.
    """
    import torch

    from speechgpt.language_models.whole import open_tokenizer, open_whole
    from units.encoder.unit_encoder import UnitEncoder
    from units.runtime.precision import multiplies_bfloat16

    if speaking.encoder is None:
        raise ValueError(f"lm:{folder} needs the unit encoder of its units: --units.encoder FOLDER")
    encoder = UnitEncoder.from_pretrained(speaking.encoder, device)
    try:
        tokenizer = open_tokenizer(folder)
        model = open_whole(folder)
    except OSError as error:
        raise FileNotFoundError(
            f"there is no language model with a tokenizer in {folder}, and the hub gave none: give a transformers "
            f"folder or a hub id ({type(error).__name__})"
        ) from error
    if model.dtype == torch.bfloat16 and not multiplies_bfloat16(device):
        model = model.float()
    path = Path(folder)
    name = f"{path.name} {fingerprint(path)}" if path.is_dir() else folder
    return UnitLM(model.to(device).eval(), tokenizer, encoder, speaking, name)
