"""What the routes of one server share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from speechgpt.answers import SpeechModel
from speechgpt.sampling import Sampling
from speechgpt.serve.metrics import Metrics
from speechgpt.serve.openai.turns import SpokenTurns
from speechgpt.serve.work import Work


@dataclass
class Service:
    """A model, and what is known of its requests. sessions: of the realtime API, that are open."""

    model: SpeechModel
    sampling: Sampling
    work: Work
    metrics: Metrics
    turns: SpokenTurns = field(default_factory=SpokenTurns)
    sessions: int = 0
    begun: int = field(default_factory=lambda: int(time.time()))

    @property
    def voices(self) -> tuple[str, ...]:
        """The model's voices; () if it has one."""
        return getattr(self.model, "voices", ())

    def in_voice(self, voice: object) -> Any:
        """The model with the voice that a request names; as it is for any other name, since clients send OpenAI's."""
        if voice in self.voices:
            return self.model.in_voice(voice)  # type: ignore[attr-defined]
        return self.model

    @property
    def model_id(self) -> str:
        """The model's name without spaces, as clients send it back."""
        return self.model.name.replace(" ", "-")
