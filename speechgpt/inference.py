"""SpeechGPT: speech in, transcript, answer and speech out. The whole path of one audio file, on one screen.

gpt = SpeechGPT.from_pretrained("runs/toy/model")
answer = gpt.answer("question.wav")
print(answer.transcript, "->", answer.text)
save_wav("answer.wav", answer.wav)

for piece in gpt.stream("question.wav", Sampling(candidates=1)):  # the same, piece by piece
    print(piece.transcript or piece.text, end="")
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from speechgpt.answers import CAPABILITIES, Answer, Candidate, Capability, Likelihood, NotSupported, Piece, Sound
from speechgpt.checkpoint import FILE, CheckpointFacts
from speechgpt.dialogue import Dialogue, Message, Reply
from speechgpt.generation.candidates import choose_candidates
from speechgpt.generation.engine import KEY_VARIABLE, Engine
from speechgpt.generation.gathering import Gatherer
from speechgpt.generation.generate import LanguageModel, context_length, draws, generate
from speechgpt.generation.grammar import Form
from speechgpt.generation.interleaved_grammar import KnownTexts
from speechgpt.generation.likelihood import Row, log_likelihoods, text_row
from speechgpt.generation.shared import share
from speechgpt.generation.sound_process import SoundProcess
from speechgpt.generation.stream import ReplyStream
from speechgpt.interleaving import SETTING, InterleavedReplies
from speechgpt.language_models.adapters import open_language_model, shape_of
from speechgpt.language_models.whole import open_tokenizer
from speechgpt.prompts import asr_prompt, tts_prompt
from speechgpt.published.template import TEMPLATE, PublishedDialogue
from speechgpt.sampling import Sampling
from speechgpt.vocab import TA
from units.audio import NO_SPEECH, SAMPLE_RATE, AudioError, AudioReason, load_wav, loudness
from units.codebook import Codebook, Units
from units.encoder.unit_encoder import UnitEncoder
from units.notation import SOSP
from units.runtime.hub import local_folder
from units.runtime.precision import check_device, multiplies_bfloat16
from units.runtime.provenance import fingerprint
from units.vocoder.unit_vocoder import UnitVocoder

DTYPES = ("float32", "bfloat16", "float16")
ENCODER, VOCODER = "unit_encoder", "vocoder"  # folders in a model folder
NEEDS: Mapping[Capability, tuple[str, ...]] = {
    "answer": (ENCODER, VOCODER),
    "stream": (ENCODER, VOCODER),
    "transcribe": (ENCODER,),
    "say": (VOCODER,),
    "chat": (),
}
# By kind of stage: unit pre-training teaches how units follow one another, cross-modal tuning teaches transcribing and
# reading aloud beside text chat. Any other kind has learned everything.
LEARNED: Mapping[str, frozenset[Capability]] = {
    "units": frozenset(),
    "cross_modal": frozenset({"transcribe", "say", "chat"}),
}


class SpeechGPT:
    """A widened LLM with a unit encoder and a unit vocoder of the same codebook: a speechgpt.answers.SpeechModel."""

    sample_rate = SAMPLE_RATE

    def __init__(
        self, model: LanguageModel, dialogue: Dialogue, facts: CheckpointFacts, folder: Path, device: str = "cpu"
    ) -> None:
        self.model, self.dialogue, self.facts, self.folder, self.device = model, dialogue, facts, folder, device
        self._encode: Callable[[list[np.ndarray]], list[Units]] = lambda wavs: self.encoder.encode_batch(wavs)
        self._decode: Callable[[list[tuple[Units, int]]], list[np.ndarray]] = self._decoded
        self._sound: SoundProcess | None = None
        self._speaker = 0

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str = "cpu", dtype: str | None = None, llm: str | None = None
    ) -> SpeechGPT:
        """Open a model folder: a checkpoint, with `unit_encoder/` and `vocoder/` in it.

        The unit encoder and the vocoder are opened when they are first needed; text chat needs neither.

        Args:
            folder: a model folder, or the id of a model on the hub, such as `name/model`.
            dtype: of the LLM's weights: float32, bfloat16 or float16. None takes the one that they are stored in, but
                float32 for bfloat16 weights on a device that would only emulate it.
            llm: URL of an inference engine that runs the LLM (speechgpt/generation/engine.py); the folder's weights
                are not read. Its key is in SPEECHGPT_LLM_KEY.

        Raises:
            FileNotFoundError: the folder, or a file in it, is missing.
            ValueError: weights are damaged, the tokenizer is of another checkpoint, or device or dtype do not exist.
        """
        check_device(device)
        if dtype not in (None, *DTYPES):
            raise ValueError(f"dtype is {dtype!r}; it is one of {', '.join(DTYPES)}")
        folder = local_folder(folder)
        facts = CheckpointFacts.load(folder)
        dialogue = open_dialogue(open_tokenizer(folder), facts, folder)
        facts.check_vocab(dialogue.vocab, folder)
        if llm is not None:
            engine = Engine.for_folder(llm, folder, os.environ.get(KEY_VARIABLE, ""))
            return cls(engine, dialogue, facts, folder, device)
        if dtype is None:
            stored = shape_of(folder).dtype
            dtype = "float32" if stored == torch.bfloat16 and not multiplies_bfloat16(device) else "auto"
        model = open_language_model(folder, dtype=dtype).to(device).eval()
        if torch.device(device).type == "cuda":
            # cuDNN's attention makes a plan for each length, and each new token is a new length
            torch.backends.cuda.enable_cudnn_sdp(False)
        return cls(model, dialogue, facts, folder, device)

    @functools.cached_property
    def name(self) -> str:
        """The folder's name and a fingerprint of its weights."""
        return f"{self.folder.name} {fingerprint(self.folder)}"

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The methods that the stage has taught and for which the folder has the parts."""
        learned = LEARNED.get(self.facts.taught, CAPABILITIES)
        return frozenset(one for one in learned if all((self.folder / part).is_dir() for part in NEEDS[one]))

    def _require(self, capability: Capability) -> None:
        """Raise NotSupported, with the reason, if a capability is missing."""
        if capability in self.capabilities:
            return
        missing = [part for part in NEEDS[capability] if not (self.folder / part).is_dir()]
        reason = f"{self.facts.stage} does not teach it"
        if missing:
            reason = (
                f"{self.folder} has no {'/ and no '.join(missing)}/ (join the parts with: python -m speechgpt.bundle "
                "--stage STAGE --encoder UNIT_ENCODER --vocoder VOCODER --out FOLDER)"
            )
        raise NotSupported(self, capability, reason)

    @property
    def codebook(self) -> Codebook:
        """The codebook of the units that the model takes and gives."""
        return self.facts.units

    @functools.cached_property
    def encoder(self) -> UnitEncoder:
        """The unit encoder. Raises CodebookMismatch if it has another codebook."""
        encoder = UnitEncoder.from_pretrained(self.folder / ENCODER, self.device)
        self.codebook.check_same(encoder.codebook, f"the model in {self.folder}", f"its {ENCODER}")
        return encoder

    @functools.cached_property
    def vocoder(self) -> UnitVocoder:
        """The vocoder. Raises CodebookMismatch if it has another codebook."""
        vocoder = UnitVocoder.from_pretrained(self.folder / VOCODER, self.device)
        self.codebook.check_same(vocoder.codebook, f"the model in {self.folder}", f"its {VOCODER}")
        return vocoder

    def preload(self) -> None:
        """Open the parts that would be opened at first use, and check their codebooks; see that the engine answers."""
        for part, attribute in ((ENCODER, "encoder"), (VOCODER, "vocoder")):
            if (self.folder / part).is_dir():
                getattr(self, attribute)
        if isinstance(self.model, Engine):
            self.model.check(self._prompt(Message("human", ("hello",))))

    def share(self, rows: int) -> None:
        """Let several threads ask at once: their replies are drawn as one batch, their sounds are encoded and made
        together.

        Args:
            rows: replies that are drawn at once; others wait.
        """
        if not isinstance(self.model, Engine):  # which batches by itself
            share(self.model, context_length(self.model), rows)
        if (self.folder / ENCODER).is_dir():
            self._encode = Gatherer(self._sound.encode if self._sound else self.encoder.encode_batch)
        if (self.folder / VOCODER).is_dir():
            self._decode = Gatherer(self._sound.decode if self._sound else self._decoded)

    def use_sound_process(self) -> None:
        """From now on, encode and make sound in a process of their own, on one core that the language model leaves.

        For a server on a CPU; to be called before `share`.
        """
        encoder, vocoder = (part if part.is_dir() else None for part in (self.folder / ENCODER, self.folder / VOCODER))
        self._sound = SoundProcess(encoder, vocoder, self.codebook, self.device)
        self._encode, self._decode = self._sound.encode, self._sound.decode
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))

    @property
    def voices(self) -> tuple[str, ...]:
        """The speakers of its vocoder, by name or by number; none if there is only one."""
        if not (self.folder / VOCODER).is_dir():
            return ()
        return self.vocoder.speakers or tuple(map(str, range(self.vocoder.settings.num_speakers)))

    def in_voice(self, voice: str) -> SpeechGPT:
        """The same model, speaking in another of its voices. Raises ValueError if it has none of that name."""
        if voice not in self.voices:
            raise ValueError(f"there is no voice {voice!r}; this model's voices: {', '.join(self.voices) or 'one'}")
        other = copy.copy(self)
        other._speaker = self.voices.index(voice)
        return other

    def heard(self, sound: Sound) -> Message:
        """A spoken question as a message, for the history of a later one. Raises: as `answer`."""
        self._require("transcribe")
        return Message("human", (self._encoded([sound])[0],))

    def answer(self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> Answer:
        """Answer a spoken question by the chain of modality: transcript, answer, spoken answer.

        Args:
            question: an audio file, or a wav (T,) at 16 kHz.
            history: earlier turns, such as `answer.turn` of each. The oldest are dropped where they would take more
                than half of the context. They confuse a model that was trained on single questions, as the toy was.

        Raises:
            NotSupported: the model has not learned to answer, or lacks its unit encoder or vocoder.
            AudioError: the question is missing, not audio, silent or too short.
            ValueError: the question is longer than the context.
        """
        return self._answers([question], sampling, history)[0]

    def answer_batch(self, questions: Sequence[Sound], sampling: Sampling = Sampling()) -> list[Answer]:
        """Answer several spoken questions at once."""
        return self._answers(questions, sampling)

    def stream(
        self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()
    ) -> Iterator[Piece]:
        """Answer a spoken question piece by piece: text while it is written, sound while units are still being drawn.

        The joined pieces equal what `answer` returns. The sound of an interleaved reply begins before its text ends.
        With self-verification (`candidates` above 1) the sound comes in one piece, since a candidate is complete before
        it is checked; so does the sound of a vocoder that cannot stream.
        """
        self._require("stream")
        vocoder = self.vocoder  # a vocoder of another codebook fails here, before anything is drawn
        asked = Message("human", (self._encoded([question])[0],))
        prompt = self._prompt(asked, history)
        reply = ReplyStream(self.dialogue, draws(self.model, self.dialogue, [prompt], self._form, sampling))
        spoken = []
        speaks = self._sound or vocoder
        for piece in reply.pieces(speaks if sampling.candidates == 1 else None, self._speaker):
            if piece.wav is not None:
                spoken.append(piece.wav)
            yield piece
        sound = [np.concatenate(spoken)] if spoken else None
        [answer] = self._spoken([asked], [prompt], [reply.finish()], sampling, sound)
        rest = reply.added(answer.transcript, answer.text, last=True)
        yield replace(rest, wav=None if spoken else answer.wav, answer=answer)

    def transcribe(self, sound: Sound, sampling: Sampling = Sampling()) -> str:
        """Write down what is said in a sound."""
        return self.transcribe_batch([sound], sampling)[0]

    def transcribe_batch(self, sounds: Sequence[Sound], sampling: Sampling = Sampling()) -> list[str]:
        """Write down what is said in several sounds at once."""
        self._require("transcribe")
        prompts = [self._prompt(asr_prompt(units)) for units in self._encoded(sounds)]
        return self._written(prompts, sampling.of_transcripts)

    def likelihoods(self, sounds: Sequence[Sound]) -> list[Likelihood]:
        """Log-likelihood of the units of each sound, behind `<sosp>` as stage 1 trains on them.

        See speechgpt.answers.ScoresSpeech.
        """
        bos, vocab = self.dialogue.text.tokenizer.bos_token_id, self.dialogue.vocab
        context = [token for token in (bos, vocab.special_id(SOSP)) if token is not None]
        rows = [Row(context, vocab.encode(units)[1:-1]) for units in self._encoded(sounds)]
        return self._scored(rows)

    def text_likelihoods(self, texts: Sequence[str], contexts: Sequence[str]) -> list[Likelihood]:
        """Log-likelihood of plain texts, outside the dialogue template. See speechgpt.answers.ScoresText."""
        bos, encode = self.dialogue.text.tokenizer.bos_token_id, self.dialogue.text.encode
        start = [] if bos is None else [bos]
        rows = [text_row(encode, start, context, text) for text, context in zip(texts, contexts)]
        return self._scored(rows)

    def _scored(self, rows: Sequence[Row]) -> list[Likelihood]:
        if isinstance(self.model, Engine):
            raise ValueError("likelihoods need the model's weights here; open it without llm")
        return log_likelihoods(self.model, rows)

    def say(self, text: str, sampling: Sampling = Sampling()) -> Answer:
        """Read a text aloud."""
        return self.say_batch([text], sampling)[0]

    def say_batch(self, texts: Sequence[str], sampling: Sampling = Sampling()) -> list[Answer]:
        """Read several texts aloud at once."""
        self._require("say")
        _ = self.vocoder  # a vocoder of another codebook fails here, before anything is drawn
        asked = [tts_prompt(text) for text in texts]
        prompts = [self._prompt(message) for message in asked]
        drawn = generate(self.model, self.dialogue, prompts, "units", sampling)
        return self._spoken(asked, prompts, drawn, sampling, texts=texts)

    def chat(self, question: str, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> str:
        """Answer a text question in text. history: as for answer."""
        self._require("chat")
        return self._written([self._prompt(Message("human", (question,)), history)], sampling)[0]

    def chat_batch(self, questions: Sequence[str], sampling: Sampling = Sampling()) -> list[str]:
        """Answer several text questions in text at once."""
        self._require("chat")
        return self._written([self._prompt(Message("human", (question,))) for question in questions], sampling)

    def _answers(self, questions: Sequence[Sound], sampling: Sampling, history: Sequence[Message] = ()) -> list[Answer]:
        self._require("answer")
        _ = self.vocoder  # a vocoder of another codebook fails here, before anything is drawn
        asked = [Message("human", (units,)) for units in self._encoded(questions)]
        prompts = [self._prompt(message, history) for message in asked]
        drawn = generate(self.model, self.dialogue, prompts, self._form, sampling)
        return self._spoken(asked, prompts, drawn, sampling)

    @property
    def _form(self) -> Form:
        """Of replies to spoken questions."""
        return "chain" if self.dialogue.interleaving is None else "interleaved"

    def _prompt(self, message: Message, history: Sequence[Message] = ()) -> list[int]:
        """Ids after which the model replies to a message."""
        prompt = self.dialogue.prompt([*history, message])
        while history and len(prompt) > context_length(self.model) // 2:
            history = history[2:]
            prompt = self.dialogue.prompt([*history, message])
        return prompt

    def _encoded(self, sounds: Sequence[Sound]) -> list[tuple[int, ...]]:
        """Units of each sound. Raises AudioError or ValueError for one that is no audio, silent or too long."""
        wavs = [sound if isinstance(sound, np.ndarray) else load_wav(sound) for sound in sounds]
        for sound, wav in zip(sounds, wavs):
            name = "the wav" if isinstance(sound, np.ndarray) else sound
            if loudness(wav) < NO_SPEECH:
                raise AudioError(AudioReason.SILENT, f"{name} is silent; there is nothing to answer")
            self._check_length(name, len(wav))
        return [units.ids for units in self._encode(wavs)]

    def _decoded(self, spoken: Sequence[tuple[Units, int]]) -> list[np.ndarray]:
        """Wavs of units, each with its speaker."""
        units, speakers = zip(*spoken)
        return self.vocoder.decode_batch(units, speaker=speakers)

    def _check_length(self, name: object, samples: int) -> None:
        """Refuse audio whose units cannot fit, before encoding it: a unit lasts at least a frame, and rarely ten."""
        context = context_length(self.model)
        seconds = samples / SAMPLE_RATE
        if seconds * self.codebook.frame_rate > 10 * context:
            raise ValueError(
                f"{name} is {seconds:.0f} s long; this model's context of {context} tokens holds about "
                f"{context / self.codebook.frame_rate:.0f} s of speech. Cut it into shorter pieces."
            )

    def _written(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[str]:
        """A text reply to each prompt."""
        drawn = generate(self.model, self.dialogue, prompts, "text", sampling)
        return [self.dialogue.parse_reply(ids).text or "" for ids in drawn]

    def _spoken(
        self,
        asked: Sequence[Message],
        prompts: Sequence[list[int]],
        drawn: Sequence[list[int]],
        sampling: Sampling,
        wavs: Sequence[np.ndarray] | None = None,
        texts: Sequence[str] | None = None,
    ) -> list[Answer]:
        """Choose a candidate for each reply's speech, and turn it into sound.

        Args:
            drawn: token ids of the replies, without the prompts.
            wavs: the sound of the replies, where it has been made already.
            texts: what is spoken, where the replies are speech alone.
        """
        replies = [self.dialogue.parse_reply(ids, chained=texts is None) for ids in drawn]
        if texts is not None:
            replies = [replace(reply, text=text) for reply, text in zip(replies, texts)]
        interleaved = texts is None and self.dialogue.interleaving is not None
        chosen = self._verified(prompts, drawn, replies, sampling, interleaved) if sampling.candidates > 1 else {}
        spoken = [chosen[i].units if i in chosen else reply.units for i, reply in enumerate(replies)]
        units = [(Units(ids, None, self.codebook), self._speaker) for ids in spoken if ids]
        sounds = iter(wavs or (self._decode(units) if units else []))
        answers = []
        for i, (reply, ids) in enumerate(zip(replies, spoken)):
            candidate, parts = chosen.get(i), replace(reply, units=ids).parts()
            # a candidate behind the first one is only taken if it is complete
            finished = self.dialogue.ended(drawn[i]) or (candidate is not None and candidate.number > 0)
            turn = (asked[i], Message("assistant", parts)) if parts else ()
            wav = next(sounds) if ids else None
            answers.append(Answer(reply.transcript, reply.text, ids, wav, candidate, finished, turn))
        return answers

    def _verified(
        self,
        prompts: Sequence[list[int]],
        drawn: Sequence[list[int]],
        replies: Sequence[Reply],
        sampling: Sampling,
        interleaved: bool,
    ) -> dict[int, Candidate]:
        """The chosen candidate of each reply that has both text and speech, by its place in the batch.

        An interleaved reply must also be complete: the text of one that was cut off may have had more to come.
        """
        verifiable = {
            i: (ids, reply.text, reply.units)
            for i, (ids, reply) in enumerate(zip(drawn, replies))
            if reply.text and reply.units and (self.dialogue.ended(ids) or not interleaved)
        }
        if not verifiable:
            return {}
        spoken, texts, first = zip(*verifiable.values())
        mark = self.dialogue.vocab.special_id(TA if interleaved else SOSP)
        before = [prompts[i] + ids[: ids.index(mark) + interleaved] for i, ids in zip(verifiable, spoken)]
        said = KnownTexts(tuple(tuple(self.dialogue.answer_tokens(ids)) for ids in spoken)) if interleaved else None
        chosen = choose_candidates(self.model, self.dialogue, before, texts, first, sampling, said)
        return dict(zip(verifiable, chosen))


def open_dialogue(tokenizer: PreTrainedTokenizerBase, facts: CheckpointFacts, folder: Path) -> Dialogue:
    """The dialogue template of a model folder: ours, or that of the published SpeechGPT.

    Raises:
        FileNotFoundError: a file of the template is missing.
        ValueError: there is no template of that name, it has no such replies, or a file of it is damaged.
    """
    name, interleaved = facts.extra.get("template"), facts.extra.get(SETTING)
    interleaving = None if interleaved is None else InterleavedReplies.from_record(interleaved, folder / FILE)
    if name is None:
        return Dialogue(tokenizer, facts.prefix, interleaving=interleaving)
    if name != TEMPLATE:
        raise ValueError(f"the template in {folder} is {name!r}; allowed: none, or {TEMPLATE!r}")
    if interleaving is not None:
        raise ValueError(f"{folder / FILE}: the template {TEMPLATE!r} has no {SETTING}; leave one of them out")
    return PublishedDialogue.from_folder(tokenizer, folder, facts.prefix)
