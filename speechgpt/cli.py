"""The `speechgpt-cli` command: talk with a model.

    speechgpt-cli --model runs/toy/model                              # chat: type text, or the path of an audio file
    speechgpt-cli --model runs/toy/model --ask q.wav --out a.wav      # one question, one answer
    speechgpt-cli --model runs/toy/model --ask q.wav --json

In the chat: text is answered in text, audio by transcript, answer and a wav; `/ask TEXT` is answered aloud, `/say TEXT`
reads aloud, `/hear FILE` only transcribes, `/record [SECONDS]` listens to the microphone, `/save FILE` keeps the last
answer, `/reset` forgets what was said, `/help`, `/quit`. Ctrl-C stops an answer.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from speechgpt.answers import Answer
from speechgpt.dialogue import Message
from speechgpt.generate import Sampling
from speechgpt.inference import SpeechGPT, chat_model
from speechgpt.sound_card import named_audio, play, record
from units.audio import save_wav

USER_ERRORS = (OSError, ValueError)  # AudioError, CodebookMismatch and VocabularyError are ValueErrors
HELP = __doc__.split("\n\n")[-1]


@dataclass
class Chat:
    """One interactive chat, printed as it comes.

    Spoken answers are written to `folder/answer_N.wav`, and what was said is added to `folder/chat.jsonl`.

    memory: how many earlier turns the model is given with a question.
    """

    gpt: SpeechGPT
    folder: Path
    play: bool
    sampling: Sampling
    memory: int = 0
    last: Answer | None = None
    turns: list[tuple[Message, ...]] = field(default_factory=list)

    def handle(self, line: str) -> bool:
        """Do what one line asks for; whether the chat goes on."""
        command, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if command in ("/quit", "/exit"):
            return False
        question = named_audio(line.strip())
        if command == "/help":
            print(HELP)
        elif command == "/reset":
            self.last = None
            self.turns.clear()
            print("forgotten")
        elif command == "/save":
            self._save(rest)
        elif command in ("/say", "/ask", "/hear") and not rest:
            print(f"{command[1:]} what? {command} {'FILE' if command == '/hear' else 'TEXT'}")
        elif command == "/say":
            self._keep(rest, self.gpt.say_batch([rest], self.sampling)[0])
        elif command == "/ask":
            self._keep(rest, self.gpt.say_batch([self._typed(rest)], self.sampling)[0])
        elif command == "/hear":
            print(self.gpt.transcribe_batch([named_audio(rest) or rest], self.sampling)[0])
        elif command == "/record":
            self._spoken("the microphone", record(rest or "4"))
        elif question is not None:
            self._spoken(str(question), question)
        elif command.startswith("/"):
            print(f"unknown command {command}; {HELP}")
        else:
            self._note(line.strip(), None, self._typed(line.strip()), None)
        return True

    def _history(self) -> list[Message]:
        recent = self.turns[-self.memory :] if self.memory else []
        return [message for turn in recent for message in turn]

    def _typed(self, question: str) -> str:
        text = self.gpt.chat(question, self.sampling, self._history())
        print(text)
        if text:
            self.turns.append((Message("human", (question,)), Message("assistant", (text,))))
        return text

    def _spoken(self, name: str, question: Path | np.ndarray) -> None:
        """Answer a sound, showing each piece as it comes."""
        heard = answered = False
        for piece in self.gpt.stream(question, self.sampling, self._history()):
            print("" if heard else "heard:  ", piece.transcript, sep="", end="", flush=True)
            heard = True
            if piece.text:
                print("" if answered else "\nanswer: ", piece.text, sep="", end="", flush=True)
                answered = True
            answer = piece.answer
        print()
        if answer is not None:
            self.turns.append(answer.turn)
            self._keep(name, answer)

    def _keep(self, asked: str, answer: Answer) -> None:
        """Write a spoken answer down, and play it if asked to."""
        self.last = answer
        if not answer.finished:
            print("(cut off: it reached max_new_tokens, or the end of its context)")
        if answer.wav is None:
            print("(the model gave no speech)")
            self._note(asked, answer.transcript, answer.text, None)
            return
        number = 1 + max(
            (int(path.stem[7:]) for path in self.folder.glob("answer_*.wav") if path.stem[7:].isdigit()), default=0
        )
        path = save_wav(self.folder / f"answer_{number}.wav", answer.wav)
        self._note(asked, answer.transcript, answer.text, path)
        print(f"spoken: {path}")
        if self.play:
            play(path)

    def _note(self, asked: str, transcript: str | None, text: str | None, path: Path | None) -> None:
        said = {"asked": asked, "transcript": transcript, "answer": text, "wav": path and path.name}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "chat.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(said, ensure_ascii=False) + "\n")

    def _save(self, target: str) -> None:
        if self.last is None or self.last.wav is None:
            print("there is no spoken answer to save yet")
        else:
            print(f"saved {save_wav(Path(target or 'answer.wav').expanduser(), self.last.wav)}")


def ask_once(gpt: SpeechGPT, question: Path, out: Path | None, as_json: bool, aloud: bool, sampling: Sampling) -> None:
    """Answer one audio file, print, write the spoken answer, and play it if it is to be heard `aloud`."""
    answer = gpt.answer(question, sampling)
    if answer.wav is not None:
        out = save_wav(out or question.with_suffix(".answer.wav").name, answer.wav)
    spoken = str(out) if answer.wav is not None else None
    if as_json:
        print(json.dumps({"question": str(question), "transcript": answer.transcript, "answer": answer.text,
                          "units": answer.units, "finished": answer.finished, "wav": spoken}))  # fmt: skip
    else:
        cut = "" if answer.finished else " (cut off)"
        print(f"heard:  {answer.transcript}\nanswer: {answer.text}\nspoken: {spoken or 'nothing'}{cut}")
    if aloud and out is not None and spoken:
        play(out)


def chat(talk: Chat) -> None:
    """Read lines and answer them, until there are no more."""
    with suppress(ImportError):
        import readline  # noqa: F401 - what is typed can be edited and called back
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeDecodeError:
            print("that line is not in the terminal's encoding")
            continue
        try:
            if line.strip() and not talk.handle(line):
                return
        except KeyboardInterrupt:
            print("\n(stopped)")
        except USER_ERRORS as error:
            print(error)


def main(
    model: str, ask: Path | None = None, out: Path | None = None, json: bool = False, play: bool = False,
    folder: Path = Path("answers"), memory: int = 0, device: str | None = None, dtype: str | None = None,
    sampling: Sampling = Sampling(),
) -> None:  # fmt: skip
    """Talk with a SpeechGPT model.

    Args:
        model: model folder, such as runs/toy/model, or the id of one of the hub
        ask: answer this one audio file and stop
        out: where the spoken answer of --ask goes
        json: print the answer of --ask as one line of JSON
        play: play spoken answers
        folder: where the chat's spoken answers go, and what was said
        memory: earlier turns of the chat that the model is given; one that has learned single questions only, as the toy
            has, is confused by any
        device: cpu or cuda; a GPU if there is one, when not given
        dtype: of the model's weights: float32, bfloat16 or float16; as they are stored if not given
        sampling: how tokens are drawn
    """
    if ask is None and (out is not None or json):
        raise ValueError("--out and --json are of --ask FILE; the chat writes its answers into --folder")
    if memory < 0:
        raise ValueError(f"memory is {memory}; it is a number of turns, 0 or more")
    gpt = chat_model(model, device, dtype)
    if ask is not None:
        ask_once(gpt, named_audio(str(ask)) or ask, out, json, play, sampling)
        return
    print(f"{gpt.facts.codebook.name}, {gpt.facts.stage}. {HELP}")
    if gpt.facts.stage in ("stage1", "stage2"):
        print(
            f"This is a model of {gpt.facts.stage}: it has not learned to answer. /hear and /say are what it may know."
        )
    chat(Chat(gpt, folder, play, sampling, memory))


def cli() -> None:
    """Entry point; a user's error ends in one line and exit code 2."""
    from jsonargparse import auto_cli
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    flags = ("--json", "--play")  # may stand alone, as flags do
    args = [f"{arg}=true" if arg in flags else arg for arg in sys.argv[1:]]
    try:
        auto_cli(main, as_positional=False, args=args)
    except USER_ERRORS as error:
        print(f"speechgpt-cli: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    cli()
