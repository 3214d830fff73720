"""A model that listens: recordings to prompts, and what an LLM replies to them.

A class of a system derives from Listener, and adds what it answers with.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from speechgpt.answers import Sound
from speechgpt.checkpoint import CheckpointFacts
from speechgpt.dialogue import Message, Speech
from speechgpt.generation.generate import context_length
from speechgpt.generation.shared import share
from speechgpt.language_models.whole import folder_config, open_tokenizer, open_whole
from speechgpt.sampling import Sampling
from units.audio import SAMPLE_RATE, SILENT, AudioError, AudioReason, check_wav, load_wav, loudness
from units.encoder.unit_encoder import Features
from units.runtime.precision import check_device, multiplies_bfloat16
from units.runtime.provenance import digest
from variants.encoders import Window, open_encoder
from variants.listening import Row, SpeechLLM, ends_of, replies, row
from variants.references import Reference, fingerprint
from variants.speech_in.documents import AdapterShape
from variants.speech_in.templates import Template

DTYPES = ("float32", "bfloat16", "float16")
Prompt = tuple[Row, list[Tensor]]  # token ids with places, and the encoder's states of each sound
KEPT_SOUNDS = 64  # recordings whose states are kept, for the turns of a chat


class ListeningFacts(Protocol):
    """What a listener reads of its model's facts: see variants/blsp/records.py for the meaning of each."""

    @property
    def llm(self) -> Reference: ...
    @property
    def encoder(self) -> Reference: ...
    @property
    def layer(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def window(self) -> Window: ...
    @property
    def shape(self) -> AdapterShape: ...
    @property
    def instructions(self) -> Mapping[str, str]: ...


def open_llm(folder: Path, device: str, dtype: str | None) -> tuple[Any, Any]:
    """The LLM in a folder, and its tokenizer.

    Args:
        dtype: of the LLM's weights: float32, bfloat16 or float16. None takes the one that they are stored in, but
            float32 for half-precision weights on a device that would only emulate them.

    Raises: ValueError if weights are damaged, or device or dtype do not exist.
    """
    check_device(device)
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype is {dtype!r}; it is one of {', '.join(DTYPES)}")
    tokenizer = open_tokenizer(folder)
    if dtype is None:
        stored = folder_config(folder).dtype
        slow = stored == torch.bfloat16 and not multiplies_bfloat16(device)
        slow = slow or (stored == torch.float16 and torch.device(device).type == "cpu")
        dtype = "float32" if slow else "auto"
    return open_whole(folder, dtype=dtype), tokenizer


class Listener:
    """An encoder, an adapter and an LLM."""

    sample_rate = SAMPLE_RATE

    def __init__(
        self,
        model: SpeechLLM,
        tokenizer: Any,
        facts: ListeningFacts,
        template: Template,
        folder: Path,
        device: str = "cpu",
    ) -> None:
        self.model, self.tokenizer, self.folder, self.device = model, tokenizer, folder, device
        self.facts, self.template = facts, template
        self.ends = ends_of(model.llm, tokenizer)
        self._states: OrderedDict[Speech, Tensor] = OrderedDict()
        self._kept, self._lock = KEPT_SOUNDS, threading.RLock()  # the encoder and the states are used by one thread

    @functools.cached_property
    def name(self) -> str:
        """The folder's name and a fingerprint of all its parts."""
        parts = (fingerprint(self.folder), self.facts.llm.fingerprint, self.facts.encoder.fingerprint)
        return f"{self.folder.name} {digest(parts)}"

    @property
    def kind(self) -> str:
        """Kind of the stage that made the folder."""
        return CheckpointFacts.load(self.folder).kind

    @functools.cached_property
    def encoder(self) -> Features:
        """The encoder. Raises references.PartError if it is missing, or another one than in training."""
        facts = self.facts
        found = facts.encoder.find(self.folder)
        encoder = open_encoder(str(found), facts.layer, self.device, facts.window)
        if encoder.dim != facts.width:
            raise ValueError(f"{found} has states of width {encoder.dim}; the adapter reads {facts.width}")
        return encoder

    def preload(self) -> None:
        """Open the encoder, which would be opened at first use."""
        _ = self.encoder

    def share(self, rows: int) -> None:
        """Let several threads ask at once: their replies are drawn as one batch of up to `rows`."""
        share(self.model.llm, context_length(self.model.llm), rows)
        self._kept = max(KEPT_SOUNDS, 16 * rows)

    def heard(self, sound: Sound) -> Message:
        """A spoken question as a message, for the history of a later one. Raises: as `answer`."""
        return self._asked(sound, "answer")

    # --- prompts and replies

    def _asked(self, sound: Sound, task: str) -> Message:
        instruction = self.facts.instructions.get(task, "")
        speech = self._speech(sound)
        return Message("human", (instruction, speech) if instruction else (speech,))

    def _all_asked(self, sounds: Sequence[Sound], task: str) -> tuple[list[Message], list[Prompt]]:
        """Messages and their prompts. Each prompt holds its states, so a batch may have more than are kept."""
        asked: list[Message] = []
        prompts: list[Prompt] = []
        for sound in sounds:
            asked.append(self._asked(sound, task))
            prompts.append(self._prompt(asked[-1]))
        return asked, prompts

    def _speech(self, sound: Sound | Speech) -> Speech:
        """A recording as a part of a message; its states are computed and kept.

        Raises: AudioError if it cannot be used; ValueError if it is longer than the context.
        """
        if isinstance(sound, Speech):
            speech = sound
            wav = None if speech in self._states else load_wav(speech.audio, speech.start, speech.duration)
        elif isinstance(sound, np.ndarray):
            wav = check_wav(sound)
            speech = Speech(f"wav {hashlib.sha256(wav.tobytes()).hexdigest()[:16]}")
        else:
            wav, speech = load_wav(sound), Speech(str(sound))
        if wav is not None:
            self._keep(speech, wav)
        return speech

    def _keep(self, speech: Speech, wav: np.ndarray) -> None:
        if loudness(wav) < SILENT:
            raise AudioError(AudioReason.SILENT, f"{speech.audio} is silent; there is nothing to answer")
        places = self.facts.shape.embeddings(self.encoder.grid.num_frames(len(wav)))
        context = context_length(self.model.llm)
        if places >= context:
            raise ValueError(
                f"{speech.audio} is {len(wav) / SAMPLE_RATE:.0f} s long and takes {places} places; the context of this "
                f"LLM has {context} tokens. Cut it into shorter pieces."
            )
        with self._lock:
            self._states[speech] = self.encoder([wav])[0].float()
            self._states.move_to_end(speech)
            while len(self._states) > self._kept:
                self._states.popitem(last=False)

    def _states_of(self, speech: Speech) -> Tensor:
        with self._lock:
            if speech not in self._states:
                self._speech(speech)  # an earlier turn, whose states were dropped, or of another process
            return self._states[speech]

    def _prompt(self, message: Message, history: Sequence[Message] = ()) -> Prompt:
        """The row after which the LLM replies to a message, and the states of the sounds in it."""
        prompt = self._joined(self.template.prompt([*history, message]))
        while history and len(prompt[0].ids) > context_length(self.model.llm) // 2:
            history = history[2:]
            prompt = self._joined(self.template.prompt([*history, message]))
        return prompt

    def _joined(self, pieces: Sequence[Any]) -> Prompt:
        states = [self._states_of(piece) for piece in pieces if isinstance(piece, Speech)]
        made = row(pieces, [self.facts.shape.embeddings(len(one)) for one in states], min(self.ends))
        return made, states

    def _replies(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[int]]:
        states = [one for _, sounds in prompts for one in sounds]
        return replies(self.model, [made for made, _ in prompts], states, self.ends, sampling)

    def _added(self, ids: Sequence[int], shown: str) -> str:
        """What the text of a growing reply has gained over what was shown of it."""
        text = self._decode(ids, last=False)
        return text[len(shown) :] if text.startswith(shown) else ""

    def _decode(self, ids: Sequence[int], last: bool = True) -> str:
        """Text of a reply, without space around it; a letter whose last bytes are still to come is held back, unless
        this is the whole reply."""
        text = self._written(ids)
        return text.strip() if last else text.strip().rstrip("\ufffd").rstrip()

    def _written(self, ids: Sequence[int]) -> str:
        """Text of a reply as it was drawn."""
        return self.tokenizer.decode([token for token in ids if token not in self.ends], skip_special_tokens=True)


def text_message(question: str) -> Message:
    """A written question as a message.

    Raises: ValueError if it is empty.
    """
    if not question.strip():
        raise ValueError("the question is empty")
    return Message("human", (question,))
