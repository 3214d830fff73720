"""LLaMA-Omni: speech or text in, text and speech out at once.

omni = LlamaOmni.from_pretrained("runs/toy/omni")
answer = omni.answer("question.wav")
print(answer.text)
save_wav("answer.wav", answer.wav)

for piece in omni.stream("question.wav"):  # the same, while it is made: text and sound take turns
    print(piece.text, end="")
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechgpt.answers import Answer, Capability, NotSupported, Piece, Sound
from speechgpt.dialogue import Message, Part, Speech
from speechgpt.sampling import Sampling
from units.codebook import Codebook, Units
from units.runtime.hub import local_folder
from units.vocoder.unit_vocoder import UnitVocoder
from variants.listening import draws
from variants.llama_omni.data.examples import with_instruction
from variants.llama_omni.network.adaptor import SpeechAdaptor
from variants.llama_omni.network.decoders import make_decoder
from variants.llama_omni.network.model import OmniLLM
from variants.llama_omni.records import ADAPTOR_FILE, DECODER_FILE, OmniFacts
from variants.llama_omni.speech_out import SILENCE, AnswerSpeech, Join
from variants.llama_omni.template import open_template
from variants.speech_in.facts import read_part
from variants.speech_in.listener import Listener, Prompt, open_llm, text_message

OMEGA = 10  # units that the vocoder gets at a time: joins are exact, so waiting longer gains nothing
WRITING: frozenset[Capability] = frozenset({"answer", "stream", "transcribe", "chat"})
Drawn = tuple[list[int], Tensor]  # token ids of a reply, and the states that predict them, (A, H)


class LlamaOmni(Listener):
    """An encoder, an adaptor, an LLM, and a decoder of its states to units: a speechgpt.answers.SpeechModel.

    A model of stage 1 has no decoder, and answers in text. omega: units that the vocoder gets at a time, at least.
    join: exact, or islands, which decodes each chunk alone as the published code does, for comparison.
    """

    model: OmniLLM
    facts: OmniFacts

    def __init__(
        self,
        model: OmniLLM,
        tokenizer: Any,
        facts: OmniFacts,
        folder: Path,
        device: str = "cpu",
        omega: int = OMEGA,
        join: Join = "exact",
    ) -> None:
        super().__init__(model, tokenizer, facts, open_template(facts.template, tokenizer), folder, device)
        if omega < 1:
            raise ValueError(f"omega is {omega}; the vocoder gets 1 unit at a time, or more")
        self.omega, self.join = omega, join

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu", dtype: str | None = None) -> LlamaOmni:
        """Open a model folder: adaptor and decoder, and references to its LLM, its encoder and its vocoder.

        The encoder and the vocoder are opened when they are first needed; text chat needs neither.

        Args:
            folder: a model folder, or the id of a model on the hub.
            dtype: of the LLM's weights: float32, bfloat16 or float16. None takes the one that they are stored in, but
                float32 for half-precision weights on a device that would only emulate them.

        Raises:
            FileNotFoundError: the folder, or a file in it, is missing.
            ValueError: weights are damaged or not those that the parts were trained with, or device or dtype do not
                exist.
        """
        folder = local_folder(folder)
        facts = OmniFacts.load(folder)
        llm, tokenizer = open_llm(facts.llm.find(folder), device, dtype)
        adaptor = SpeechAdaptor(facts.width, llm.config.get_text_config().hidden_size, facts.shape)
        decoder = None
        if facts.decoder is not None and facts.speaking is not None:
            decoder = make_decoder(facts.decoder, facts.speaking)
        for part, file, prefix in ((adaptor, ADAPTOR_FILE, "adapter."), (decoder, DECODER_FILE, "decoder.")):
            if part is None:
                continue
            try:
                part.load_state_dict(read_part(folder, file, prefix))
            except RuntimeError as error:
                raise ValueError(
                    f"{file} in {folder} is not of the shape in its speechgpt.json, or lacks weights: {error}"
                ) from error
        if decoder is not None:
            decoder.with_weights_in(llm.dtype)
        model = OmniLLM(llm, adaptor.float(), decoder)
        return cls(model.to(device).eval(), tokenizer, facts, folder, device)

    @property
    def speaks(self) -> bool:
        """Whether it can make sound: it has a decoder and a vocoder."""
        return self.model.decoder is not None and self.facts.vocoder is not None

    @property
    def capabilities(self) -> frozenset[Capability]:
        return WRITING | {"say"} if self.speaks else WRITING

    @property
    def codebook(self) -> Codebook | None:
        """The codebook of the units that the model gives; None for a model that answers in text."""
        return self.facts.codebook

    @functools.cached_property
    def vocoder(self) -> UnitVocoder | None:
        """The vocoder; None for a model without one.

        Raises: references.PartError if it is missing; CodebookMismatch if it speaks other units.
        """
        if self.facts.vocoder is None or self.model.decoder is None:
            return None
        found = self.facts.vocoder.find(self.folder)
        vocoder = UnitVocoder.from_pretrained(found, self.device)
        self._codebook.check_same(vocoder.codebook, f"the model in {self.folder}", f"its vocoder {found}")
        return vocoder

    def preload(self) -> None:
        """Open the encoder and the vocoder, which would be opened at first use."""
        _ = self.encoder, self.vocoder

    # --- SpeechModel

    def answer(self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> Answer:
        """Answer a spoken question in text and speech.

        Args:
            question: an audio file, or a wav (T,) at 16 kHz.
            history: earlier turns, spoken or written: `answer.turn` of each. The oldest are dropped where they would
                take more than half of the context.

        Raises:
            AudioError: the question is missing, not audio, silent or too short.
            ValueError: the question is longer than the context.
        """
        if self.join == "islands":
            *_, last = self.stream(question, sampling, history)
            assert last.answer is not None
            return last.answer
        heard, asked = self._questions([question], sampling)
        return self._heard(heard, self._spoken(asked, self._drawn([self._prompt(asked[0], history)], sampling)))[0]

    def answer_batch(self, questions: Sequence[Sound], sampling: Sampling = Sampling()) -> list[Answer]:
        """Answer several spoken questions at once."""
        if not self.facts.through_text:
            asked, prompts = self._all_asked(questions, "answer")
            return self._spoken(asked, self._drawn(prompts, sampling))
        heard, asked = self._questions(questions, sampling)
        return self._heard(heard, self._spoken(asked, self._drawn([self._prompt(one) for one in asked], sampling)))

    def prepared(self, parts: Sequence[Part]) -> Message:
        """A message of recordings and text, with the instruction that goes with recordings if it has no text.

        Raises: AudioError if a recording cannot be used; ValueError if it is longer than the context.
        """
        found = tuple(self._speech(part) if isinstance(part, Speech) else part for part in parts)
        message = Message("human", found)
        written = any(isinstance(part, str) for part in found)
        return message if written else with_instruction(message, self.facts.instructions.get("answer", ""))

    def reply_batch(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> list[Answer]:
        """Reply to any messages at once, with speech and text in any order, spoken or written."""
        return self._spoken(messages, self._drawn([self._prompt(message) for message in messages], sampling))

    def stream(
        self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()
    ) -> Iterator[Piece]:
        """Answer a spoken question piece by piece: text and sound take turns, each as soon as it is made.

        The joined pieces equal what `answer` returns, whatever omega is.
        """
        speech = self.open_speech()  # a vocoder of another codebook fails here, before anything is drawn
        (heard,), (asked,) = self._questions([question], sampling)
        if heard is not None:
            yield Piece(transcript=heard)
        row, sounds = self._prompt(asked, history)
        states: list[Tensor] = []
        ids: list[int] = []
        shown, wavs = "", []
        for (token,) in draws(self.model, [row], sounds, self.ends, sampling, observe=states.append):
            state = states.pop()[0]
            if token is None:
                continue
            ids.append(token)
            if added := self._added(ids, shown):
                yield Piece(text=added)
                shown += added
            wav = SILENCE if speech is None else speech.push(state, self._words([token])[0])
            if len(wav):
                wavs.append(wav)
                yield Piece(wav=wav)
        whole = self._decode(ids)
        if whole.startswith(shown) and whole != shown:
            yield Piece(text=whole[len(shown) :])
        for wav in () if speech is None else speech.finish():
            wavs.append(wav)
            yield Piece(wav=wav)
        answer = self._answered_with(
            asked, ids, [] if speech is None else speech.units, np.concatenate(wavs) if wavs else None
        )
        (answer,) = self._heard([heard], [answer])
        yield Piece(answer=answer)

    def transcribe(self, sound: Sound, sampling: Sampling = Sampling()) -> str:
        """Write down what is said in a sound: the LLM is asked to repeat it."""
        return self.transcribe_batch([sound], sampling)[0]

    def transcribe_batch(self, sounds: Sequence[Sound], sampling: Sampling = Sampling()) -> list[str]:
        """Write down what is said in several sounds at once."""
        _, prompts = self._all_asked(sounds, "transcribe")
        return [self._decode(reply) for reply in self._replies(prompts, sampling.of_transcripts)]

    def say(self, text: str, sampling: Sampling = Sampling()) -> Answer:
        """Read a text aloud: the decoder speaks the states of an LLM that is made to write it."""
        return self.say_batch([text], sampling)[0]

    def say_batch(self, texts: Sequence[str], sampling: Sampling = Sampling()) -> list[Answer]:
        """Read several texts aloud at once. Raises NotSupported without a decoder and a vocoder."""
        if not self.speaks:
            raise NotSupported(self, "say", "it answers in text" if self.model.decoder is None else "no vocoder")
        asked = [Message("human", (f"{self.facts.instructions['say']} {text}".strip(),)) for text in texts]
        for text in texts:
            text_message(text)  # an empty one is refused
        return self._spoken(asked, [self._forced(message, text) for message, text in zip(asked, texts)])

    def chat(self, question: str, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> str:
        """Answer a text question in text. history: as for answer."""
        return self._decode(self._replies([self._prompt(text_message(question), history)], sampling)[0])

    def chat_batch(self, questions: Sequence[str], sampling: Sampling = Sampling()) -> list[str]:
        """Answer several text questions in text at once."""
        prompts = [self._prompt(text_message(one)) for one in questions]
        return [self._decode(reply) for reply in self._replies(prompts, sampling)]

    def respond_batch(
        self, sounds: Sequence[Sound], instructions: Sequence[str], sampling: Sampling = Sampling()
    ) -> list[str]:
        """The response to each recording by its instruction, in text. See speechgpt.answers.FollowsInstructions."""
        pairs = zip(sounds, instructions, strict=True)
        asked = [with_instruction(Message("human", (self._speech(sound),)), one) for sound, one in pairs]
        return [self._decode(reply) for reply in self._replies([self._prompt(one) for one in asked], sampling)]

    # --- from states to sound

    @property
    def _codebook(self) -> Codebook:
        assert self.facts.codebook is not None  # a folder with a decoder has one
        return self.facts.codebook

    def open_speech(self) -> AnswerSpeech | None:
        """The speech of the next answer; None for a model without a decoder."""
        if self.model.decoder is None:
            return None
        return AnswerSpeech(self.model.decoder, self._codebook, self.vocoder, self.omega, self.join)

    def _asked(self, sound: Sound, task: str) -> Message:
        return with_instruction(Message("human", (self._speech(sound),)), self.facts.instructions.get(task, ""))

    def _questions(self, sounds: Sequence[Sound], sampling: Sampling) -> tuple[list[str | None], list[Message]]:
        """What was heard of some questions, where the model answers through text, and the messages to be answered."""
        if not self.facts.through_text:
            return [None] * len(sounds), [self._asked(sound, "answer") for sound in sounds]
        heard: list[str | None] = []
        asked: list[Message] = []
        for sound, text in zip(sounds, self.transcribe_batch(sounds, sampling)):
            heard.append(text or None)
            asked.append(Message("human", (text,)) if text else self._asked(sound, "answer"))
        return heard, asked

    @staticmethod
    def _heard(heard: Sequence[str | None], answers: Sequence[Answer]) -> list[Answer]:
        """Answers with what was heard of their questions."""
        return [replace(answer, transcript=text) for text, answer in zip(heard, answers, strict=True)]

    def _words(self, ids: Sequence[int]) -> Tensor:
        """Embeddings of tokens, (n, H)."""
        with torch.inference_mode():
            return self.model.get_input_embeddings()(torch.tensor(list(ids), device=self.model.device))

    def _drawn(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Drawn]:
        """A reply to each prompt, with its states."""
        if not prompts:
            return []
        rows, sounds = [made for made, _ in prompts], [one for _, found in prompts for one in found]
        states: list[Tensor] = []
        ids: list[list[int]] = [[] for _ in rows]
        kept: list[list[Tensor]] = [[] for _ in rows]
        for tokens in draws(self.model, rows, sounds, self.ends, sampling, observe=states.append):
            step = states.pop()
            for number, token in enumerate(tokens):
                if token is not None:
                    ids[number].append(token)
                    kept[number].append(step[number])
        return [(one, torch.stack(row)) for one, row in zip(ids, kept)]

    @torch.inference_mode()
    def _forced(self, asked: Message, text: str) -> Drawn:
        """A reply that the LLM is made to write, with its states."""
        made, _ = self._joined(self.template.document([asked, Message("assistant", (text,))]))
        ids = torch.tensor([made.ids], device=self.model.device)
        places = torch.tensor([place for place, said in enumerate(made.train) if said], device=self.model.device)
        hidden = self.model.last_states(ids, use_cache=False)[0]
        return [made.ids[place] for place in places.tolist()], hidden[places - 1]

    def _spoken(self, asked: Sequence[Message], drawn: Sequence[Drawn]) -> list[Answer]:
        """Replies as answers, with their sound."""
        units = self._units(drawn)
        vocoder = self.vocoder
        spoken = [Units(tuple(one), None, self._codebook) for one in units if one and vocoder]
        sounds = iter(vocoder.decode_batch(spoken) if vocoder and spoken else [])
        return [
            self._answered_with(message, ids, one, next(sounds) if one and vocoder else None)
            for message, (ids, _), one in zip(asked, drawn, units)
        ]

    def _units(self, drawn: Sequence[Drawn]) -> list[list[int]]:
        """Units of each reply; none from a model without a decoder."""
        decoder = self.model.decoder
        if decoder is None or not drawn:
            return [[] for _ in drawn]
        with torch.inference_mode():
            states = torch.cat([one for _, one in drawn])
            tokens = decoder.tokens(states, self._words([token for ids, _ in drawn for token in ids]))
        return decoder.units_of(tokens, [len(ids) for ids, _ in drawn])

    def _answered_with(
        self, asked: Message, ids: Sequence[int], units: Sequence[int], wav: np.ndarray | None
    ) -> Answer:
        text = self._decode(ids) or None
        spoken = tuple(units) or None
        parts = tuple(part for part in (text, spoken) if part is not None)
        turn = (asked, Message("assistant", parts)) if text else ()
        finished = bool(ids) and ids[-1] in self.ends
        return Answer(None, text, spoken, wav, finished=finished, turn=turn)
