"""SpeechGPT: hear, transcribe, answer, speak. The whole path of one audio file, on one screen.

gpt = SpeechGPT.from_pretrained("runs/toy/model")
answer = gpt.answer("question.wav")
print(answer.transcript, "->", answer.text)
save_wav("answer.wav", answer.wav)

for piece in gpt.stream("question.wav", Sampling(takes=1)):  # the same, while it is being thought
    print(piece.transcript or piece.text, end="")
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from speechgpt.answers import Answer, Piece, Sound
from speechgpt.candidates import Take, recital, retake, transcription
from speechgpt.checkpoint import CheckpointFacts, local_folder
from speechgpt.dialogue import Dialogue, Message, Reply
from speechgpt.generate import Sampling, context_length, draws, generate
from speechgpt.stream import ReplyStream
from speechgpt.vocab import EOA, UA
from units.audio import SAMPLE_RATE, AudioError, load_wav
from units.codebook import Codebook, Units
from units.encoder.unit_encoder import UnitEncoder
from units.runtime.precision import check_device, multiplies_bfloat16
from units.vocoder.unit_vocoder import UnitVocoder

SILENT = 1e-3  # a wav whose peak is below this holds nothing to hear
DTYPES = ("float32", "bfloat16", "float16")


class SpeechGPT:
    """A widened LLM with its ears (a unit encoder) and its voice (a unit vocoder), all of one codebook."""

    def __init__(
        self, model: PreTrainedModel, dialogue: Dialogue, facts: CheckpointFacts, folder: Path, device: str = "cpu"
    ) -> None:
        self.model, self.dialogue, self.facts, self.folder, self.device = model, dialogue, facts, folder, device

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu", dtype: str | None = None) -> SpeechGPT:
        """Open a model folder: a checkpoint of any stage, with `unit_encoder/` and `vocoder/` in it.

        Ears and voice are opened when first needed; text chat needs neither.

        Args:
            folder: or the id of a model of the hub, such as `name/model`.
            dtype: of the LLM's weights: float32, bfloat16 or float16. None is as they are stored, but float32 where they
                are bfloat16 and the device would emulate it.

        Raises: FileNotFoundError or ValueError naming what is missing or does not fit.
        """
        check_device(device)
        if dtype not in (None, *DTYPES):
            raise ValueError(f"dtype is {dtype!r}; it is one of {', '.join(DTYPES)}")
        folder = local_folder(folder)
        facts = CheckpointFacts.load(folder)
        dialogue = Dialogue(AutoTokenizer.from_pretrained(folder), facts.prefix)
        facts.check_vocab(dialogue.vocab, folder)
        if dtype is None:
            stored = AutoConfig.from_pretrained(folder).dtype
            dtype = "float32" if stored == torch.bfloat16 and not multiplies_bfloat16(device) else "auto"
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        except SafetensorError as error:
            raise ValueError(f"the weights in {folder} are damaged ({error}); copy them again") from error
        if torch.device(device).type == "cuda":
            torch.backends.cuda.enable_cudnn_sdp(
                False
            )  # it makes a plan for each length, and each token is a new length
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

    def answer(self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> Answer:
        """Answer a spoken question by the chain of modality: transcript, answer, spoken answer.

        Args:
            history: the turns before, such as `answer.turn` of each; the oldest are left out where they take more than half
                of the context. A model that has learned single questions, as the toy has, is only confused by them.

        Raises: FileNotFoundError, AudioError (not audio, silent, too short), ValueError (longer than the context).
        """
        return self._answers([question], sampling, history)[0]

    def answer_batch(self, questions: Sequence[Sound], sampling: Sampling = Sampling()) -> list[Answer]:
        """As answer, for several questions at once."""
        return self._answers(questions, sampling)

    def stream(
        self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()
    ) -> Iterator[Piece]:  # fmt: skip
        """As answer, in pieces: text while it is written, and sound while the units are still coming.

        The joined pieces are what `answer` gives. A model that hears itself (`takes` above 1) must have said all before
        it is heard, so its sound comes in one piece; so does that of a voice with the mel head.
        """
        self._check_voice()
        asked = Message("human", (self._hear([question])[0],))
        prompt = self._prompt(asked, history)
        reply = ReplyStream(self.dialogue, draws(self.model, self.dialogue, [prompt], "chain", sampling))
        yield from reply.texts()
        said = []
        for wav in reply.sound(self.vocoder) if sampling.takes == 1 else ():
            said.append(wav)
            yield Piece(wav=wav)
        [answer] = self._speak([asked], [prompt], [reply.finish()], sampling, [np.concatenate(said)] if said else None)
        rest = reply.added(answer.transcript, answer.text, last=True)
        yield replace(rest, wav=None if said else answer.wav, answer=answer)

    def transcribe_batch(self, sounds: Sequence[Sound], sampling: Sampling = Sampling()) -> list[str]:
        """What is said in each sound."""
        return self._write([self._prompt(transcription(units)) for units in self._hear(sounds)], sampling)

    def say_batch(self, texts: Sequence[str], sampling: Sampling = Sampling()) -> list[Answer]:
        """Each text, spoken."""
        self._check_voice()
        asked = [recital(text) for text in texts]
        prompts = [self._prompt(message) for message in asked]
        drawn = generate(self.model, self.dialogue, prompts, "units", sampling)
        return self._speak(asked, prompts, drawn, sampling, texts=texts)

    def chat_batch(self, questions: Sequence[str], sampling: Sampling = Sampling()) -> list[str]:
        """Text answers to text questions."""
        return self._write([self._prompt(Message("human", (question,))) for question in questions], sampling)

    def chat(self, question: str, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> str:
        """A text answer to a text question. history: as for answer."""
        return self._write([self._prompt(Message("human", (question,)), history)], sampling)[0]

    def _answers(
        self, questions: Sequence[Sound], sampling: Sampling, history: Sequence[Message] = ()
    ) -> list[Answer]:  # fmt: skip
        self._check_voice()
        asked = [Message("human", (units,)) for units in self._hear(questions)]
        prompts = [self._prompt(message, history) for message in asked]
        return self._speak(asked, prompts, generate(self.model, self.dialogue, prompts, "chain", sampling), sampling)

    def _prompt(self, message: Message, history: Sequence[Message] = ()) -> list[int]:
        """Ids after which the model replies to a message."""
        prompt = self.dialogue.prompt([*history, message])
        while history and len(prompt) > context_length(self.model) // 2:
            history = history[2:]
            prompt = self.dialogue.prompt([*history, message])
        return prompt

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
        context = context_length(self.model)
        seconds = samples / SAMPLE_RATE
        if seconds * self.codebook.frame_rate > 10 * context:
            raise ValueError(
                f"{name} is {seconds:.0f} s long; this model's context of {context} tokens holds about "
                f"{context / self.codebook.frame_rate:.0f} s of speech. Cut it into shorter pieces."
            )

    def _write(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[str]:
        drawn = generate(self.model, self.dialogue, prompts, "text", sampling)
        return [self.dialogue.parse_reply(ids).text or "" for ids in drawn]

    def _speak(
        self, asked: Sequence[Message], prompts: Sequence[list[int]], drawn: Sequence[list[int]], sampling: Sampling,
        said: Sequence[np.ndarray] | None = None, texts: Sequence[str] | None = None,
    ) -> list[Answer]:  # fmt: skip
        """Choose takes of the replies' speech, and make sound of them.

        Args:
            drawn: token ids of the replies, behind the prompts.
            said: the sound, where it was made already. texts: what is said, where the replies are speech alone.
        """
        replies = [self.dialogue.parse_reply(ids, chained=texts is None) for ids in drawn]
        if texts is not None:
            replies = [replace(reply, text=text) for reply, text in zip(replies, texts)]
        takes = self._listen(prompts, drawn, replies, sampling) if sampling.takes > 1 else {}
        spoken = [takes[i].units if i in takes else reply.units for i, reply in enumerate(replies)]
        units = [Units(ids, None, self.codebook) for ids in spoken if ids]
        wavs = iter(said or (self.vocoder.decode_batch(units) if units else []))
        end, answers = self.dialogue.vocab.marker(EOA), []
        for i, (reply, ids) in enumerate(zip(replies, spoken)):
            take, parts = takes.get(i), replace(reply, units=ids).parts()
            finished = drawn[i][-1] == end or (take is not None and take.number > 0)  # later takes are whole ones
            turn = (asked[i], Message("assistant", parts)) if parts else ()
            answers.append(Answer(reply.transcript, reply.text, ids, next(wavs) if ids else None, take, finished, turn))
        return answers

    def _listen(
        self, prompts: Sequence[list[int]], drawn: Sequence[list[int]], replies: Sequence[Reply], sampling: Sampling
    ) -> dict[int, Take]:
        """The chosen take of each reply that has both text and speech, by its place in the batch."""
        speaks = self.dialogue.vocab.marker(UA)  # behind it, or behind the prompt, speech begins
        said = {
            i: (prompts[i] + ids[: ids.index(speaks) + 1 if speaks in ids else 0], reply.text, reply.units)
            for i, (ids, reply) in enumerate(zip(drawn, replies))
            if reply.text and reply.units
        }
        if not said:
            return {}
        after, texts, first = zip(*said.values())
        return dict(zip(said, retake(self.model, self.dialogue, after, texts, first, sampling)))


def chat_model(folder: str | Path, device: str | None = None, dtype: str | None = None) -> SpeechGPT:
    """Open a model on a GPU where there is one."""
    return SpeechGPT.from_pretrained(folder, device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype)
