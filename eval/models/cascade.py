"""A cascade: a recogniser, a text LLM and a TTS voice, one after the other, as one SpeechModel. The row to beat.

    --model cascade:whisper:openai/whisper-small.en,meta-llama/Llama-3.2-1B-Instruct,flite:slt
    --model cascade:whisper:FOLDER,http://localhost:8000/v1#my-model          # without a voice: text answers alone
    --model cascade:transcripts,FOLDER                                        # the text topline

The recogniser is any evaluation ASR. `transcripts` stands for one that makes no error: it knows what is said in the
wavs of the test set, so what is measured is the LLM alone, the topline of every system that is built on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.asr.recogniser import EvaluationASR, open_asr
from eval.instructed import FILE as INSTRUCTED
from eval.instructed import instructed
from eval.test_set import NotMeasured, TestSet
from instruct_data.speech.tts_voice import TTSVoice
from instruct_data.speech.voices import open_voice
from instruct_data.text.completion import (
    Chat,
    Completion,
    CompletionError,
    EndpointModel,
    LocalModel,
    TruncatedText,
    local_model,
)
from instruct_data.text.spoken.form import speakable
from speechgpt.answers import Answer, Capability, Likelihood, NotSupported, Piece, Sound
from speechgpt.dialogue import Message
from speechgpt.sampling import Sampling
from units.audio import NO_SPEECH, SAMPLE_RATE, AudioError, AudioReason, load_wav
from units.runtime.files.json_files import read_text
from units.runtime.provenance import digest, fingerprint

KIND = "cascade:"
TRANSCRIPTS = "transcripts"
FORM = f"{KIND}ASR,LLM[,VOICE][,tokens=N][,system=FILE]"
REPLY_TOKENS = 256  # the longest reply of the LLM; LLaMA-Omni's limit
OPTION = re.compile(r"(\w+)=(.*)", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
ROLES = {"human": "user", "assistant": "assistant"}


class CascadeError(ValueError):
    """A specification of a cascade that cannot be read."""


@dataclass(frozen=True)
class Cascade:
    """A SpeechModel of three parts.

    asr: transcribes questions.
    llm: replies to transcripts and to typed questions.
    voice: reads replies aloud; None for text answers alone.
    system: a system prompt for the LLM; "" leaves it to the chat template.
    tokens: the longest reply.
    """

    asr: EvaluationASR
    llm: LocalModel | EndpointModel
    voice: TTSVoice | None = None
    system: str = ""
    tokens: int = REPLY_TOKENS
    sample_rate = SAMPLE_RATE

    @property
    def name(self) -> str:
        """The parts, the LLM with a fingerprint of its weights where it is a folder."""
        prompted = f", prompted {digest([self.system], 6)}" if self.system else ""
        spoken = f", {self.voice.name}" if self.voice else ""
        return f"cascade {self.asr.name}, {_llm_name(self.llm)} up to {self.tokens} tokens{prompted}{spoken}"

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Everything; `say` needs a voice."""
        able: set[Capability] = {"answer", "stream", "transcribe", "chat"}
        return frozenset(able | {"say"} if self.voice else able)

    def answer(self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> Answer:
        """Transcribe a question, reply to the transcript, and read the reply aloud."""
        return self._answers([question], sampling, history)[0]

    def answer_batch(self, questions: Sequence[Sound], sampling: Sampling = Sampling()) -> list[Answer]:
        """As answer, for several questions."""
        return self._answers(questions, sampling)

    def stream(
        self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()
    ) -> Iterator[Piece]:
        """The transcript, then the text, then the sound sentence by sentence."""
        [transcript] = self.transcribe_batch([question])
        yield Piece(transcript=transcript)
        [text] = self._replies([transcript], sampling, history)
        yield Piece(text=text)
        wavs = []
        for wav in self._sentences(text):
            wavs.append(wav)
            yield Piece(wav=wav)
        yield Piece(answer=_answer(transcript, text, wavs))

    def transcribe(self, sound: Sound, sampling: Sampling = Sampling()) -> str:
        """What the recogniser understands."""
        return self.transcribe_batch([sound])[0]

    def transcribe_batch(self, sounds: Sequence[Sound], sampling: Sampling = Sampling()) -> list[str]:
        """As transcribe, for several sounds. Raises AudioError for a silent one."""
        wavs = [sound if isinstance(sound, np.ndarray) else load_wav(sound) for sound in sounds]
        for sound, wav in zip(sounds, wavs):
            if np.abs(wav).max(initial=0.0) < NO_SPEECH:
                name = "the wav" if isinstance(sound, np.ndarray) else sound
                raise AudioError(AudioReason.SILENT, f"{name} is silent; there is nothing to answer")
        return self.asr.transcribe_all(wavs)

    def say(self, text: str, sampling: Sampling = Sampling()) -> Answer:
        """Read a text aloud."""
        if self.voice is None:
            raise NotSupported(self, "say", f"it has no voice; give one: {FORM}")
        return _answer(None, text, list(self._sentences(text)))

    def say_batch(self, texts: Sequence[str], sampling: Sampling = Sampling()) -> list[Answer]:
        """Read several texts aloud."""
        return [self.say(text, sampling) for text in texts]

    def chat(self, question: str, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> str:
        """The LLM's reply to a typed question."""
        return self._replies([question], sampling, history)[0]

    def chat_batch(self, questions: Sequence[str], sampling: Sampling = Sampling()) -> list[str]:
        """As chat, for several questions."""
        return list(self._replies(questions, sampling))

    def respond_batch(
        self, sounds: Sequence[Sound], instructions: Sequence[str], sampling: Sampling = Sampling()
    ) -> list[str]:
        """The LLM's response to each instruction, with the transcript of its recording below it."""
        pairs = zip(instructions, self.transcribe_batch(sounds), strict=True)
        return list(self._replies([f"{instruction}\n\n{transcript}" for instruction, transcript in pairs], sampling))

    def text_likelihoods(self, texts: Sequence[str], contexts: Sequence[str]) -> list[Likelihood]:
        """Log-likelihood of plain texts under a local LLM. See speechgpt.answers.ScoresText."""
        if isinstance(self.llm, EndpointModel):
            raise NotMeasured(f"{self.llm.url} does not say how likely a text is; give the LLM's folder")
        from speechgpt.generation.likelihood import log_likelihoods, text_row

        tokenizer, model = local_model(self.llm.folder, self.llm.device)
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False)

        rows = [text_row(encode, start, context, text) for text, context in zip(texts, contexts)]
        return log_likelihoods(model, rows)

    def _answers(self, questions: Sequence[Sound], sampling: Sampling, history: Sequence[Message] = ()) -> list[Answer]:
        transcripts = self.transcribe_batch(questions)
        texts = self._replies(transcripts, sampling, history)
        return [_answer(transcript, text, list(self._sentences(text))) for transcript, text in zip(transcripts, texts)]

    def _replies(self, questions: Sequence[str], sampling: Sampling, history: Sequence[Message] = ()) -> list[str]:
        """The LLM's replies. Raises CompletionError, and EndpointUnavailable as the LLM does."""
        llm = _limited(self.llm, min(self.tokens, sampling.max_new_tokens), sampling)
        found: dict[int, Completion] = dict(llm.completions([self._chat(one, history) for one in questions]))
        for reply in found.values():
            if isinstance(reply, CompletionError):
                raise reply
        return [text for i in range(len(questions)) if isinstance(text := found[i], str)]

    def _chat(self, question: str, history: Sequence[Message]) -> Chat:
        system = ({"role": "system", "content": self.system},) if self.system else ()
        earlier = ({"role": ROLES[turn.role], "content": _text(turn)} for turn in history)
        return (*system, *earlier, {"role": "user", "content": question})

    def _sentences(self, text: str) -> Iterator[np.ndarray]:
        """The sound of a text, sentence by sentence; nothing without a voice, and for what nobody could say."""
        if self.voice is None:
            return
        spoken = speakable(text, getattr(self.asr, "language", None) or "en")
        for sentence in SENTENCE_END.split(spoken):
            if any(map(str.isalnum, sentence)):
                yield self.voice.speak(sentence.strip())


def _answer(transcript: str | None, text: str, wavs: list[np.ndarray]) -> Answer:
    turn = () if transcript is None else (Message("human", (transcript,)), Message("assistant", (text,)))
    wav = np.concatenate(wavs) if wavs else None
    return Answer(transcript, text, None, wav, finished=not isinstance(text, TruncatedText), turn=turn)


def _text(turn: Message) -> str:
    return " ".join(part for part in turn.parts if isinstance(part, str))


def _limited(llm: LocalModel | EndpointModel, tokens: int, sampling: Sampling) -> LocalModel | EndpointModel:
    if isinstance(llm, EndpointModel):
        return replace(llm, most_tokens=tokens, temperature=sampling.temperature)
    if sampling.temperature:
        raise ValueError(f"temperature is {sampling.temperature}; a local LLM of a cascade replies greedily: 0")
    return replace(llm, most_tokens=tokens)


def _llm_name(llm: LocalModel | EndpointModel) -> str:
    if isinstance(llm, LocalModel) and (folder := Path(llm.folder)).is_dir():
        return f"{folder.name} {fingerprint(folder)}"
    return llm.name


class TrueTranscripts:
    """The evaluation ASR of the topline: what is said in each wav, from the manifests of a test set."""

    name = "the true transcripts"

    def __init__(self, test_set: TestSet) -> None:
        self.test_set = test_set
        self._texts: dict[str, str] = {}

    def transcribe(self, wav: np.ndarray | None) -> str:
        """What is said in a wav (T,) of the test set; "" for None.

        Raises:
            ValueError: the wav is not of the test set.
        """
        if wav is None:
            return ""
        self._texts = self._texts or {_key(item.wav()): item.question for item in self._items()}
        text = self._texts.get(_key(wav))
        if text is None:
            raise ValueError(f"the topline knows the texts of {self.test_set.path} alone; this wav is not in it")
        return text

    def transcribe_all(self, wavs: Sequence[np.ndarray | None]) -> list[str]:
        """As transcribe, for many wavs, in order."""
        return [self.transcribe(wav) for wav in wavs]

    def comparable(self, texts: Sequence[str | None]) -> list[str | None]:
        """The texts as they are."""
        return list(texts)

    def _items(self) -> Iterator:
        """Every readable item of the test set whose text is known."""
        named = [name for name in ("test.jsonl", "test_new_voice.jsonl") if self.test_set.has(name)]
        items = [item for name in named for item in self.test_set.items(name)]
        rows = instructed(self.test_set) if self.test_set.has(INSTRUCTED) else []
        for item in [*items, *(row.item for row in rows if row.item.question)]:
            try:
                item.wav()
            except (ValueError, OSError):  # the task that asks with it refuses it
                continue
            yield item


def _key(wav: np.ndarray) -> str:
    return digest([np.ascontiguousarray(wav, np.float32).tobytes()], 32)


def open_cascade(specification: str, device: str, test_set: TestSet | None = None) -> Cascade:
    """Open a cascade.

    Args:
        specification: FORM. ASR as `--asr`, or `transcripts`; LLM a folder, a hub id or URL#MODEL; VOICE as in
            instruct_data.speech.voices. No part may hold a comma.
        device: where recogniser and LLM run.
        test_set: has the grammar of pocketsphinx, and the texts of `transcripts`.

    Raises:
        CascadeError: the specification cannot be read.
        ValueError, FileNotFoundError: as open_asr and open_voice.
    """
    parts = specification.removeprefix(KIND).split(",")
    options = {found[1]: found[2] for part in parts if (found := OPTION.fullmatch(part))}
    named = [part for part in parts if not OPTION.fullmatch(part)]
    if len(named) not in (2, 3) or "" in named or not options.keys() <= {"tokens", "system"}:
        raise CascadeError(
            f"{specification!r} is not a cascade; it is {FORM}, such as "
            "cascade:whisper:openai/whisper-small.en,FOLDER_OR_HUB_ID_OR_URL#MODEL,flite:slt; ASR is as for --asr, or "
            f"{TRANSCRIPTS}; no part may hold a comma"
        )
    asr, llm, voice = (*named, "")[:3]
    tokens = options.get("tokens", str(REPLY_TOKENS))
    if not re.fullmatch("[1-9][0-9]{0,5}", tokens):
        raise CascadeError(f"tokens is {tokens!r} in {specification!r}; it is a number, 1 or more")
    system = read_text(Path(options["system"])).strip() if "system" in options else ""
    return Cascade(
        _open_asr(asr, device, test_set),
        _open_llm(llm, device),
        open_voice(voice) if voice else None,
        system,
        int(tokens),
    )


def _open_asr(asr: str, device: str, test_set: TestSet | None) -> EvaluationASR:
    if asr != TRANSCRIPTS:
        opened = open_asr(asr, test_set.grammar if test_set else None, device)
        assert opened is not None  # a name gives a recogniser, or an error
        return opened
    if test_set is None:
        raise NotMeasured(f"{TRANSCRIPTS} needs a test set, whose texts it knows")
    return TrueTranscripts(test_set)


def _open_llm(llm: str, device: str) -> LocalModel | EndpointModel:
    if not llm.startswith(("http://", "https://")):
        from transformers import AutoConfig

        try:
            AutoConfig.from_pretrained(llm)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"there is no language model in {llm}, and the hub gave none: give a transformers folder, a hub id, or "
                f"URL#MODEL of a server ({type(error).__name__})"
            ) from error
        return LocalModel(llm, device)
    url, _, model = llm.partition("#")
    if not model:
        raise CascadeError(f"{llm!r} names no model; an endpoint is URL#MODEL, such as http://localhost:8000/v1#llama")
    return EndpointModel(url, model)
