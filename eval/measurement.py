"""One measurement: a model, a test set and an evaluation ASR. What several tasks need is computed once.

Utterances that cannot be read, or that the model refuses, are listed in `refused` and count as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from eval.asr.recogniser import EvaluationASR
from eval.judge import Judge
from eval.model import AdaptedModel, NoAnswer
from eval.signal.settings import SignalModels
from eval.test_set import NotMeasured, TestItem, TestSet
from speechgpt.answers import Answer, Capability, NotSupported, ScoresSpeech, ScoresText, SpeechModel
from speechgpt.sampling import Sampling
from units.audio import SAMPLE_RATE
from units.runtime.progress import progress
from units.runtime.refusals import Reason, Refusal, RefusedError, refusal_of

BATCH = 16  # questions per call of the model
NO_ANSWER = Answer(None, None, None, None)  # stands for the answer to an utterance that was refused
# A model with this capability can give this part of an answer, so answers without it are wrong and not unmeasurable.
CAPABILITY_OF_PART: dict[str, Capability] = {"text": "chat", "wav": "say"}

FAULTS_OF_THE_MODEL = (NotSupported, NoAnswer)  # errors that do not depend on the utterance

Input = TypeVar("Input")
Output = TypeVar("Output")


class EvalReason(Reason):
    """Why an utterance is not measured, beyond the reasons of units.audio.AudioReason."""

    MODEL_REFUSED = "model_refused"
    """the model raised ValueError or OSError without a code: longer than its context, ..."""


class EverythingRefused(ValueError):
    """Every utterance was refused, so the fault lies in the model or in the paths, not in the utterances."""


class LostExamples(ValueError):
    """A model returned more or fewer outputs than it was given inputs."""


class Measurement:
    """A model, a test set and an evaluation ASR.

    Args:
        asr: transcribes spoken answers; None leaves out the tasks that need it.
        keep: folder for the spoken answers that are kept as audio.
        device: where the model runs; written into the results.
        judge: grades replies; None leaves out the task that needs it.
        kept: how many spoken answers are kept as audio.
        signal: networks that judge the sound of answers.
        reply_tokens: the longest reply, in tokens; None leaves it to the model.
    """

    def __init__(
        self,
        model: SpeechModel,
        test_set: TestSet,
        asr: EvaluationASR | None,
        keep: Path,
        device: str = "cpu",
        judge: Judge | None = None,
        kept: int = 5,
        signal: SignalModels = SignalModels(),
        reply_tokens: int | None = None,
    ) -> None:
        self.model, self.test_set, self.keep, self.device = model, test_set, keep, device
        self._asr, self._judge, self.kept, self.signal = asr, judge, kept, signal
        self.reply_tokens = reply_tokens
        self.sampling = Sampling() if reply_tokens is None else Sampling(max_new_tokens=reply_tokens)
        self.refused: dict[str, Refusal] = {}  # by the utterance's id

    @property
    def asr(self) -> EvaluationASR:
        """The evaluation ASR. Raises NotMeasured without one."""
        if self._asr is None:
            raise NotMeasured(
                "there is no evaluation ASR: give --asr whisper:FOLDER_OR_HUB_ID, or --grammar, a JSGF file of every "
                "sentence that may be said"
            )
        return self._asr

    @property
    def judge(self) -> Judge:
        """The judge. Raises NotMeasured without one."""
        if self._judge is None:
            raise NotMeasured("there is no judge: give --judge URL#MODEL, or a folder of a causal LM")
        return self._judge

    @property
    def judge_name(self) -> str | None:
        """The judge's name; None without one."""
        return None if self._judge is None else f"judge {self._judge.name}"

    def comparable(self, texts: Sequence[str | None]) -> list[str | None] | None:
        """Texts as the evaluation ASR compares them (Whisper's normaliser for a Whisper); None without one."""
        return None if self._asr is None else self._asr.comparable(texts)

    @property
    def asr_name(self) -> str | None:
        """The evaluation ASR's name; None without one."""
        return None if self._asr is None else self._asr.name

    @cached_property
    def answers(self) -> list[Answer]:
        """The model's answers to the spoken test questions."""
        return self.over_wavs(self.answer, self.test_set.test, "answering", NO_ANSWER)

    @cached_property
    def recognised(self) -> list[str]:
        """The evaluation ASR's transcripts of those answers."""
        return self.asr.transcribe_all([answer.wav for answer in self.answers])

    @cached_property
    def first_recognised(self) -> list[str]:
        """The evaluation ASR's transcripts of the first candidates: the answers without self-verification."""
        texts = list(self.recognised)
        replaced = [i for i, answer in enumerate(self.answers) if answer.candidate and answer.candidate.number]
        items = [self.test_set.test[i] for i in replaced]
        first = self.over_wavs(self.answer_once, items, "first candidates", NO_ANSWER)
        for i, text in zip(replaced, self.asr.transcribe_all([answer.wav for answer in first])):
            texts[i] = text
        return texts

    @property
    def first_candidate(self) -> Sampling:
        """How a reply is drawn without self-verification."""
        return replace(self.sampling, candidates=1)

    def answer(self, wavs: Sequence[np.ndarray], sampling: Sampling | None = None) -> list[Answer]:
        """The model's answers to wavs (T,) at 16 kHz."""
        self.require("answer")
        drawn = self.model.answer_batch(self.for_model(wavs), sampling or self.sampling)
        return [self._at_16khz(answer) for answer in drawn]

    def answer_once(self, wavs: Sequence[np.ndarray]) -> list[Answer]:
        """As answer, without self-verification."""
        return self.answer(wavs, self.first_candidate)

    def transcribe(self, wavs: Sequence[np.ndarray]) -> list[str]:
        """The model's transcripts of wavs (T,) at 16 kHz."""
        self.require("transcribe")
        return self.model.transcribe_batch(self.for_model(wavs), self.sampling)

    def say(self, texts: Sequence[str]) -> list[Answer]:
        """The model's speech for texts."""
        self.require("say")
        return [self._at_16khz(answer) for answer in self.model.say_batch(texts, self.sampling)]

    def chat(self, texts: Sequence[str]) -> list[str]:
        """The model's text answers to texts."""
        self.require("chat")
        return self.model.chat_batch(texts, self.sampling)

    def require(self, capability: Capability) -> None:
        """Raises NotSupported if the model lacks a capability."""
        if capability not in self.model.capabilities:
            raise NotSupported(self.model, capability)

    @property
    def scorer(self) -> ScoresSpeech:
        """The model as one that says how likely a sound is. Raises NotMeasured if it cannot."""
        model = self.model.model if isinstance(self.model, AdaptedModel) else self.model
        if not isinstance(model, ScoresSpeech):
            raise NotMeasured(f"the model {self.model.name} does not say how likely a sound is (no `likelihoods`)")
        return model

    @property
    def text_scorer(self) -> ScoresText:
        """The model as one that says how likely a text is. Raises NotMeasured if it cannot."""
        model = self.model.model if isinstance(self.model, AdaptedModel) else self.model
        if not isinstance(model, ScoresText):
            raise NotMeasured(f"the model {self.model.name} does not say how likely a text is (no `text_likelihoods`)")
        return model

    @property
    def out(self) -> Path:
        """The folder of the results."""
        return self.keep.parent

    def require_part(self, part: str) -> None:
        """Raises NotMeasured if no answer has a part and no capability shows that the model could give it."""
        able = CAPABILITY_OF_PART[part] in self.model.capabilities
        if not able and all(getattr(answer, part) is None for answer in self.answers):
            raise NotMeasured(f"the model's answers have no {part}")

    def over_wavs(
        self,
        function: Callable[[Sequence[np.ndarray]], list],
        items: Sequence[TestItem],
        name: str,
        nothing: object = None,
    ) -> list:
        """Outputs of a function of a batch of wavs; `nothing` for each utterance that is refused.

        Raises: EverythingRefused.
        """
        refused: dict[str, Refusal] = {}

        def one(item: TestItem) -> object:
            try:
                [output] = function([item.wav()])
            except FAULTS_OF_THE_MODEL:
                raise
            except (ValueError, OSError) as error:
                refused[item.id] = refusal(item, error)
                return nothing
            return output

        def batch(some: list[TestItem]) -> list:
            try:
                return function([item.wav() for item in some])
            except FAULTS_OF_THE_MODEL:
                raise
            except (ValueError, OSError):  # one utterance failed; the others of the batch are still measured
                return [one(item) for item in some]

        outputs = self.over(batch, items, name)
        if refused and len(refused) == len(items):
            last = list(refused.values())[-1]
            raise EverythingRefused(
                f"{name}: every utterance was refused, the last one ({last.id}) because {last.detail}"
            )
        self.refused |= refused
        return outputs

    def over_texts(
        self, function: Callable[[Sequence[str]], list[str]], texts: Mapping[str, str], name: str
    ) -> list[str]:
        """Outputs of a function of a batch of texts; "" for each text that is refused, which is listed by its id.

        Args:
            texts: id -> text.

        Raises: EverythingRefused.
        """
        refused: dict[str, Refusal] = {}

        def batch(some: list[tuple[str, str]]) -> list[str]:
            try:
                return function([text for _, text in some])
            except FAULTS_OF_THE_MODEL:
                raise
            except ValueError as error:
                if len(some) > 1:  # one text failed; the others of the batch are still measured
                    return [output for one in some for output in batch([one])]
                reason = error.reason if isinstance(error, RefusedError) else EvalReason.MODEL_REFUSED
                refused[some[0][0]] = refusal_of(some[0][0], reason, str(error))
                return [""]

        outputs = self.over(batch, list(texts.items()), name)
        if refused and len(refused) == len(texts):
            raise EverythingRefused(f"{name}: every text was refused, because {list(refused.values())[-1].detail}")
        self.refused |= refused
        return outputs

    def over(self, function: Callable[[list[Input]], list[Output]], inputs: Sequence[Input], name: str) -> list[Output]:
        """Outputs of a function of a batch, with a progress bar. Raises LostExamples."""
        outputs: list[Output] = []
        with progress(total=len(inputs), desc=name, unit="examples") as bar:
            for start in range(0, len(inputs), BATCH):
                batch = list(inputs[start : start + BATCH])
                some = function(batch)
                if len(some) != len(batch):
                    raise LostExamples(f"{name}: {len(batch)} examples went in, {len(some)} came out")
                outputs += some
                bar.update(len(batch))
        return outputs

    def for_model(self, wavs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Wavs (T,) at 16 kHz, brought to the model's sample rate."""
        return [resampled(wav, SAMPLE_RATE, self.model.sample_rate) for wav in wavs]

    def _at_16khz(self, answer: Answer) -> Answer:
        if answer.wav is None or self.model.sample_rate == SAMPLE_RATE:
            return answer
        return replace(answer, wav=resampled(answer.wav, self.model.sample_rate, SAMPLE_RATE))


def refusal(item: TestItem, error: Exception) -> Refusal:
    """The row of refused.jsonl for an utterance that raised an error."""
    reason = error.reason if isinstance(error, RefusedError) else EvalReason.MODEL_REFUSED
    return refusal_of(item.id, reason, str(error), item.utterance.audio)


def resampled(wav: np.ndarray, rate: int, to: int) -> np.ndarray:
    """A wav (T,) at `rate` Hz, brought to `to` Hz."""
    if rate == to:
        return wav
    import soxr

    return np.ascontiguousarray(soxr.resample(wav, rate, to), dtype=np.float32)
