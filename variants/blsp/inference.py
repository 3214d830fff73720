"""BLSP: speech or text in, text out.

blsp = BLSP.from_pretrained("runs/toy/blsp")
print(blsp.answer("question.wav").text)
print(blsp.respond([Request("question.wav", "Please translate the following audio into German text.")]))

for piece in blsp.stream("question.wav"):  # the same, piece by piece
    print(piece.text, end="")
"""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from speechgpt.answers import Answer, Capability, NotSupported, Piece, Sound
from speechgpt.checkpoint import CheckpointFacts, local_folder
from speechgpt.dialogue import Message, Speech
from speechgpt.generation.generate import context_length
from speechgpt.sampling import Sampling
from units.audio import SAMPLE_RATE, SILENT, AudioError, AudioReason, check_wav, load_wav
from units.encoder.unit_encoder import Features
from units.runtime.precision import check_device, multiplies_bfloat16
from units.runtime.provenance import digest
from variants.blsp.adapter import SpeechAdapter
from variants.blsp.records import BlspFacts, read_adapter
from variants.blsp.template import open_template
from variants.encoders import open_encoder
from variants.listening import Row, SpeechLLM, draws, ends_of, replies, row
from variants.references import fingerprint

DTYPES = ("float32", "bfloat16", "float16")
Prompt = tuple[Row, list[Tensor]]  # token ids with places, and the encoder's states of each sound
KEPT_SOUNDS = 64  # recordings whose states are kept, for the turns of a chat


@dataclass(frozen=True)
class Request:
    """What to respond to: a recording, an instruction, or both."""

    sound: Sound | Speech | None = None
    instruction: str = ""


class BLSP:
    """An encoder, an adapter and an LLM that answers in text: a speechgpt.answers.SpeechModel."""

    sample_rate = SAMPLE_RATE
    capabilities: frozenset[Capability] = frozenset({"answer", "stream", "transcribe", "chat"})

    def __init__(self, model: SpeechLLM, tokenizer: Any, facts: BlspFacts, folder: Path, device: str = "cpu") -> None:
        self.model, self.tokenizer, self.facts, self.folder, self.device = model, tokenizer, facts, folder, device
        self.template = open_template(facts.template, tokenizer)
        self.ends = ends_of(model.llm, tokenizer)
        self._states: OrderedDict[Speech, Tensor] = OrderedDict()

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu", dtype: str | None = None) -> BLSP:
        """Open a model folder: an adapter, and references to its LLM and its encoder.

        The encoder is opened when it is first needed; text chat does not need it.

        Args:
            folder: a model folder, or the id of a model on the hub.
            dtype: of the LLM's weights: float32, bfloat16 or float16. None takes the one that they are stored in, but
                float32 for bfloat16 weights on a device that would only emulate it.

        Raises:
            FileNotFoundError: the folder, or a file in it, is missing.
            ValueError: weights are damaged or not those that the adapter was trained with, or device or dtype do not
                exist.
        """
        check_device(device)
        if dtype not in (None, *DTYPES):
            raise ValueError(f"dtype is {dtype!r}; it is one of {', '.join(DTYPES)}")
        folder = local_folder(folder)
        facts = BlspFacts.load(folder)
        llm_folder = facts.llm.find(folder)
        tokenizer = AutoTokenizer.from_pretrained(llm_folder)
        if dtype is None:
            stored = AutoConfig.from_pretrained(llm_folder).dtype
            dtype = "float32" if stored == torch.bfloat16 and not multiplies_bfloat16(device) else "auto"
        try:
            llm = AutoModelForCausalLM.from_pretrained(llm_folder, dtype=dtype)
        except SafetensorError as error:
            raise ValueError(f"the weights in {llm_folder} are damaged ({error}); copy them again") from error
        adapter = SpeechAdapter(facts.width, llm.config.get_text_config().hidden_size, facts.shape)
        try:
            adapter.load_state_dict(read_adapter(folder))
        except RuntimeError as error:
            raise ValueError(f"the adapter in {folder} is not of the shape in its speechgpt.json: {error}") from error
        return cls(SpeechLLM(llm, adapter.float()).to(device).eval(), tokenizer, facts, folder, device)

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

    # --- SpeechModel

    def answer(self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> Answer:
        """Answer a spoken question in text.

        Args:
            question: an audio file, or a wav (T,) at 16 kHz.
            history: earlier turns, spoken or written: `answer.turn` of each. The oldest are dropped where they would
                take more than half of the context.

        Raises:
            AudioError: the question is missing, not audio, silent or too short.
            ValueError: the question is longer than the context.
        """
        asked = self._asked(question, "answer")
        (reply,) = self._replies([self._prompt(asked, history)], sampling)
        return self._answered(asked, reply)

    def answer_batch(self, questions: Sequence[Sound], sampling: Sampling = Sampling()) -> list[Answer]:
        """Answer several spoken questions at once."""
        asked, prompts = self._all_asked(questions, "answer")
        return [self._answered(message, reply) for message, reply in zip(asked, self._replies(prompts, sampling))]

    def stream(
        self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()
    ) -> Iterator[Piece]:
        """Answer a spoken question piece by piece. The joined pieces equal what `answer` returns."""
        asked = self._asked(question, "answer")
        prompt = self._prompt(asked, history)
        ids: list[int] = []
        shown = ""
        for (token,) in draws(self.model, [prompt[0]], prompt[1], self.ends, sampling):
            if token is None:
                continue
            ids.append(token)
            text = self._decode(ids, last=False)
            if text.startswith(shown) and len(text) > len(shown):
                yield Piece(text=text[len(shown) :])
                shown = text
        answer = self._answered(asked, ids)
        whole = answer.text or ""
        yield Piece(text=whole[len(shown) :] if whole.startswith(shown) else "", answer=answer)

    def transcribe(self, sound: Sound, sampling: Sampling = Sampling()) -> str:
        """Write down what is said in a sound: the LLM is asked to repeat it."""
        return self.transcribe_batch([sound], sampling)[0]

    def transcribe_batch(self, sounds: Sequence[Sound], sampling: Sampling = Sampling()) -> list[str]:
        """Write down what is said in several sounds at once."""
        _, prompts = self._all_asked(sounds, "transcribe")
        return [self._decode(reply) for reply in self._replies(prompts, sampling)]

    def say(self, text: str, sampling: Sampling = Sampling()) -> Answer:
        """Raises NotSupported: BLSP answers in text."""
        raise NotSupported(self, "say", "it answers in text")

    def say_batch(self, texts: Sequence[str], sampling: Sampling = Sampling()) -> list[Answer]:
        """Raises NotSupported: BLSP answers in text."""
        raise NotSupported(self, "say", "it answers in text")

    def chat(self, question: str, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> str:
        """Answer a text question in text. history: as for answer."""
        return self._decode(self._replies([self._prompt(_text(question), history)], sampling)[0])

    def chat_batch(self, questions: Sequence[str], sampling: Sampling = Sampling()) -> list[str]:
        """Answer several text questions in text at once."""
        return [
            self._decode(reply) for reply in self._replies([self._prompt(_text(one)) for one in questions], sampling)
        ]

    # --- any instruction

    def respond(self, requests: Sequence[Request], sampling: Sampling = Sampling()) -> list[str]:
        """Respond to recordings by any instruction, several at once.

        Raises: ValueError if a request has neither a recording nor an instruction; AudioError as for answer.
        """
        return self.responses([self.prepared(request) for request in requests], sampling)

    def prepared(self, request: Request) -> Prompt:
        """A request as `responses` takes it: with its recording encoded.

        Raises: as `respond`.
        """
        if request.sound is not None:
            parts = (request.instruction,) if request.instruction else ()
            return self._prompt(Message("human", (*parts, self._speech(request.sound))))
        if not request.instruction:
            raise ValueError("there is neither a recording nor an instruction to respond to")
        return self._joined(self.template.instruct(request.instruction))

    def responses(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[str]:
        """Respond to prepared requests, several at once; texts are as the LLM wrote them."""
        return [self._written(reply) for reply in self._replies(prompts, sampling)]

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
        if np.abs(wav).max(initial=0.0) < SILENT:
            raise AudioError(AudioReason.SILENT, f"{speech.audio} is silent; there is nothing to answer")
        places = self.facts.shape.embeddings(self.encoder.grid.num_frames(len(wav)))
        context = context_length(self.model.llm)
        if places >= context:
            raise ValueError(
                f"{speech.audio} is {len(wav) / SAMPLE_RATE:.0f} s long and takes {places} places; the context of this "
                f"LLM has {context} tokens. Cut it into shorter pieces."
            )
        self._states[speech] = self.encoder([wav])[0].float()
        self._states.move_to_end(speech)
        while len(self._states) > KEPT_SOUNDS:
            self._states.popitem(last=False)

    def _states_of(self, speech: Speech) -> Tensor:
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

    def _answered(self, asked: Message, reply: Sequence[int]) -> Answer:
        text = self._decode(reply) or None
        turn = (asked, Message("assistant", (text,))) if text else ()
        return Answer(None, text, None, None, finished=bool(reply) and reply[-1] in self.ends, turn=turn)

    def _decode(self, ids: Sequence[int], last: bool = True) -> str:
        """Text of a reply, without space around it; a letter whose last bytes are still to come is held back, unless
        this is the whole reply."""
        text = self._written(ids)
        return text.strip() if last else text.strip().rstrip("\ufffd").rstrip()

    def _written(self, ids: Sequence[int]) -> str:
        """Text of a reply as it was drawn."""
        return self.tokenizer.decode([token for token in ids if token not in self.ends], skip_special_tokens=True)


def _text(question: str) -> Message:
    """Raises ValueError for an empty question."""
    if not question.strip():
        raise ValueError("the question is empty")
    return Message("human", (question,))
