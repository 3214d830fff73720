"""SpeechGPT: hear, transcribe, answer, speak. The whole path of one audio file, on one screen.

gpt = SpeechGPT.from_pretrained("runs/toy/model")
answer = gpt.answer("question.wav")
print(answer.transcript, "->", answer.text)
save_wav("answer.wav", answer.wav)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from speechgpt.checkpoint import CheckpointFacts
from speechgpt.dialogue import Dialogue, Message, Reply
from speechgpt.generate import Sampling, generate
from speechgpt.takes import Take, recital, retake, transcription
from speechgpt.vocab import UA
from units.audio import SAMPLE_RATE, AudioError, load_wav
from units.codebook import Codebook, Units
from units.encoder import UnitEncoder
from units.vocoder import UnitVocoder

SILENT = 1e-3  # a wav whose peak is below this holds nothing to hear
Sound = str | Path | np.ndarray  # an audio file, or a wav (T,)


@dataclass(frozen=True)
class Answer:
    """A reply and its sound. What was not asked for is None. wav: float32 (T,), 16 kHz.

    take: how its speech was chosen, and whether the model understands it; None if it did not listen.
    """

    transcript: str | None
    text: str | None
    units: tuple[int, ...] | None
    wav: np.ndarray | None
    take: Take | None = None


class SpeechGPT:
    """A widened LLM with its ears (a unit encoder) and its voice (a unit vocoder), all of one codebook."""

    def __init__(
        self, model: PreTrainedModel, dialogue: Dialogue, facts: CheckpointFacts, folder: Path, device: str = "cpu"
    ) -> None:
        self.model, self.dialogue, self.facts, self.folder, self.device = model, dialogue, facts, folder, device

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu") -> SpeechGPT:
        """Open a model folder: a checkpoint of any stage, with `unit_encoder/` and `vocoder/` in it.

        Ears and voice are opened when first needed; text chat needs neither.

        Raises: FileNotFoundError or ValueError naming what is missing or does not fit.
        """
        folder = Path(folder)
        facts = CheckpointFacts.load(folder)
        dialogue = Dialogue(AutoTokenizer.from_pretrained(folder), facts.prefix)
        facts.check_vocab(dialogue.vocab, folder)
        model = AutoModelForCausalLM.from_pretrained(folder).to(device).eval()
        return cls(model, dialogue, facts, folder, device)

    @property
    def codebook(self) -> Codebook:
        """Of the units it hears and speaks."""
        return self.facts.codebook

    @functools.cached_property
    def encoder(self) -> UnitEncoder:
        """The ears. Raises CodebookMismatch if they are of another codebook."""
        encoder = UnitEncoder.from_pretrained(self._beside("unit_encoder", "hear"), self.device)
        self.codebook.check_same(encoder.codebook, f"the model in {self.folder}", "its unit_encoder")
        return encoder

    @functools.cached_property
    def vocoder(self) -> UnitVocoder:
        """The voice. Raises CodebookMismatch if it is of another codebook."""
        vocoder = UnitVocoder.from_pretrained(self._beside("vocoder", "speak"), self.device)
        self.codebook.check_same(vocoder.codebook, f"the model in {self.folder}", "its vocoder")
        return vocoder

    def _beside(self, name: str, verb: str) -> Path:
        if not (self.folder / name).is_dir():
            raise FileNotFoundError(
                f"{self.folder} has no {name}/, so the model cannot {verb}. Join the parts with: "
                "python -m speechgpt.bundle --stage STAGE --encoder UNIT_ENCODER --vocoder VOCODER --out FOLDER"
            )
        return self.folder / name

    def answer(self, question: Sound, sampling: Sampling = Sampling()) -> Answer:
        """Answer a spoken question by the chain of modality: transcript, answer, spoken answer.

        Raises: FileNotFoundError, AudioError (not audio, silent, too short), ValueError (longer than the context).
        """
        return self.answer_batch([question], sampling)[0]

    def answer_batch(self, questions: Sequence[Sound], sampling: Sampling = Sampling()) -> list[Answer]:
        """As answer, for several questions at once."""
        self._check_voice()
        prompts = [self.dialogue.prompt([Message("human", (units,))]) for units in self._hear(questions)]
        drawn = generate(self.model, self.dialogue, prompts, "chain", sampling)
        replies = [self.dialogue.parse_reply(ids, chained=True) for ids in drawn]
        speaks = self.dialogue.vocab.marker(UA)
        after = [
            prompt + ids[: ids.index(speaks) + 1] if speaks in ids else prompt for prompt, ids in zip(prompts, drawn)
        ]
        return self._speak(after, replies, sampling)

    def transcribe_batch(self, sounds: Sequence[Sound], sampling: Sampling = Sampling()) -> list[str]:
        """What is said in each sound."""
        return self._write([transcription(units) for units in self._hear(sounds)], sampling)

    def say_batch(self, texts: Sequence[str], sampling: Sampling = Sampling()) -> list[Answer]:
        """Each text, spoken."""
        self._check_voice()
        prompts = [self.dialogue.prompt([recital(text)]) for text in texts]
        drawn = generate(self.model, self.dialogue, prompts, "units", sampling)
        replies = [Reply(None, text, self.dialogue.parse_reply(ids).units) for text, ids in zip(texts, drawn)]
        return self._speak(prompts, replies, sampling)

    def chat_batch(self, questions: Sequence[str], sampling: Sampling = Sampling()) -> list[str]:
        """Text answers to text questions."""
        return self._write([Message("human", (question,)) for question in questions], sampling)

    def _hear(self, sounds: Sequence[Sound]) -> list[tuple[int, ...]]:
        wavs = [sound if isinstance(sound, np.ndarray) else load_wav(sound) for sound in sounds]
        for sound, wav in zip(sounds, wavs):
            name = "the wav" if isinstance(sound, np.ndarray) else sound
            if np.abs(wav).max(initial=0.0) < SILENT:
                raise AudioError(f"{name} is silent; there is nothing to answer")
            self._check_length(name, len(wav))
        return [units.ids for units in self.encoder.encode_batch(wavs)]

    def _check_voice(self) -> None:
        """Open the voice before the model works for it: one that is missing or foreign is told at once, and always."""
        _ = self.vocoder

    def _check_length(self, name: object, samples: int) -> None:
        """Refuse audio whose units cannot fit, before encoding it: a unit lasts at least a frame, and rarely ten."""
        context = self.model.config.max_position_embeddings
        seconds = samples / SAMPLE_RATE
        if seconds * self.codebook.frame_rate > 10 * context:
            raise ValueError(
                f"{name} is {seconds:.0f} s long; this model's context of {context} tokens holds about "
                f"{context / self.codebook.frame_rate:.0f} s of speech. Cut it into shorter pieces."
            )

    def _write(self, asked: Sequence[Message], sampling: Sampling) -> list[str]:
        prompts = [self.dialogue.prompt([message]) for message in asked]
        drawn = generate(self.model, self.dialogue, prompts, "text", sampling)
        return [self.dialogue.parse_reply(ids).text or "" for ids in drawn]

    def _speak(self, prompts: Sequence[list[int]], replies: Sequence[Reply], sampling: Sampling) -> list[Answer]:
        """Choose takes of the replies' speech, and make sound of them. prompts: after which the speech begins."""
        takes = self._listen(prompts, replies, sampling) if sampling.takes > 1 else {}
        spoken = [takes[i].units if i in takes else reply.units for i, reply in enumerate(replies)]
        units = [Units(ids, None, self.codebook) for ids in spoken if ids]
        wavs = iter(self.vocoder.decode_batch(units) if units else [])
        return [
            Answer(reply.transcript, reply.text, ids, next(wavs) if ids else None, takes.get(i))
            for i, (reply, ids) in enumerate(zip(replies, spoken))
        ]

    def _listen(self, prompts: Sequence[list[int]], replies: Sequence[Reply], sampling: Sampling) -> dict[int, Take]:
        """The chosen take of each reply that has both text and speech, by its place in the batch."""
        said = {i: (prompts[i], r.text, r.units) for i, r in enumerate(replies) if r.text and r.units}
        if not said:
            return {}
        after, texts, first = zip(*said.values())
        return dict(zip(said, retake(self.model, self.dialogue, after, texts, first, sampling)))


def chat_model(folder: str | Path, device: str | None = None) -> SpeechGPT:
    """Open a model on the best device there is."""
    return SpeechGPT.from_pretrained(folder, device or ("cuda" if torch.cuda.is_available() else "cpu"))
