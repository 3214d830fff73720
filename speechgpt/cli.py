"""The `speechgpt-cli` command: talk with a model.

    speechgpt-cli --model runs/toy/model                              # chat: type text, or the path of an audio file
    speechgpt-cli --model runs/toy/model --ask q.wav --out a.wav      # one question, one answer
    speechgpt-cli --model runs/toy/model --ask q.wav --json

In the chat: text is answered in text, audio by transcript, answer and a wav; `/ask TEXT` answers aloud, `/say TEXT`
reads aloud, `/hear FILE` only transcribes, `/record [SECONDS]` takes the question from the microphone, `/save FILE`
keeps the last answer, `/reset` forgets the conversation, `/help`, `/quit`. Ctrl-C stops an answer.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from speechgpt.sampling import Sampling
from units.runtime.command import USER_ERRORS, check_range, command

if TYPE_CHECKING:
    import numpy as np

    from speechgpt.answers import Answer, SpeechModel
    from speechgpt.dialogue import Message

HELP = __doc__.split("\n\n")[-1]
COMMANDS = ("/help", "/reset", "/save", "/record", "/say", "/ask", "/hear")


@dataclass
class Chat:
    """One interactive chat, printed as it comes.

    Spoken answers are written to `folder/answer_N.wav`, and every turn is added to `folder/chat.jsonl`.

    memory: how many earlier turns the model gets with a question.
    """

    model: SpeechModel
    folder: Path
    play: bool
    sampling: Sampling
    memory: int = 0
    last: Answer | None = None
    turns: list[tuple[Message, ...]] = field(default_factory=list)

    def handle(self, line: str) -> bool:
        """Do what one line asks for; returns whether the chat goes on."""
        from speechgpt.serve.sound_card import named_audio

        line = line.strip()
        name, _, rest = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name in COMMANDS:
            self._command(name, rest.strip())
        elif (question := named_audio(line)) is not None:
            self._spoken(str(question), question)
        elif name.startswith("/"):
            print(f"unknown command {name}; {HELP}")
        else:
            self._note(line, None, self._typed(line), None)
        return True

    def _command(self, name: str, rest: str) -> None:
        from speechgpt.serve.sound_card import named_audio, record

        if name == "/help":
            print(HELP)
        elif name == "/reset":
            self.last = None
            self.turns.clear()
            print("forgotten")
        elif name == "/save":
            self._save(rest)
        elif name == "/record":
            self._spoken("the microphone", record(rest or "4"))
        elif not rest:
            print(f"{name[1:]} what? {name} {'FILE' if name == '/hear' else 'TEXT'}")
        elif name == "/say":
            self._keep(rest, self.model.say(rest, self.sampling))
        elif name == "/ask":
            self._keep(rest, self.model.say(self._typed(rest), self.sampling))
        else:
            print(self.model.transcribe(named_audio(rest) or rest, self.sampling))

    def _history(self) -> list[Message]:
        recent = self.turns[-self.memory :] if self.memory else []
        return [message for turn in recent for message in turn]

    def _typed(self, question: str) -> str:
        from speechgpt.dialogue import Message

        text = self.model.chat(question, self.sampling, self._history())
        print(text)
        if text:
            self.turns.append((Message("human", (question,)), Message("assistant", (text,))))
        return text

    def _spoken(self, name: str, question: Path | np.ndarray) -> None:
        """Answer a sound, showing each piece as it comes."""
        from speechgpt.answers import answer_pieces

        titled: list[str] = []
        answer = None
        for piece in answer_pieces(self.model, question, self.sampling, self._history()):
            answer = piece.answer
            unreadable = not titled and answer is not None and answer.transcript is not None  # no whole letter in it
            for title, text in (("heard:  ", piece.transcript), ("answer: ", piece.text)):
                if title not in titled and (text or (unreadable and not titled)):
                    print("\n" if titled else "", title, sep="", end="")
                    titled.append(title)
                print(text, end="", flush=True)
        print()
        if answer is not None:
            self.turns.append(answer.turn)
            self._keep(name, answer)

    def _keep(self, asked: str, answer: Answer) -> None:
        """Write a spoken answer into the folder, and play it if asked to."""
        from speechgpt.serve.sound_card import play
        from units.audio import save_wav

        self.last = answer
        if not answer.finished:
            print("(cut off: it reached max_new_tokens, or the end of its context)")
        if answer.wav is None:
            print("(the model gave no speech)")
            self._note(asked, answer.transcript, answer.text, None)
            return
        numbers = (path.stem[7:] for path in self.folder.glob("answer_*.wav"))
        number = 1 + max((int(number) for number in numbers if number.isdigit()), default=0)
        path = save_wav(self.folder / f"answer_{number}.wav", answer.wav)
        self._note(asked, answer.transcript, answer.text, path)
        print(f"spoken: {path}")
        if self.play:
            play(path)

    def _note(self, asked: str, transcript: str | None, text: str | None, path: Path | None) -> None:
        turn = {"asked": asked, "transcript": transcript, "answer": text, "wav": path and path.name}
        self.folder.mkdir(parents=True, exist_ok=True)
        # a file's name need not be Unicode: JSON has an escape for each of its odd bytes
        with (self.folder / "chat.jsonl").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(turn, ensure_ascii=False) + "\n")

    def _save(self, target: str) -> None:
        from units.audio import save_wav

        if self.last is None or self.last.wav is None:
            print("there is no spoken answer to save yet")
        else:
            print(f"saved {save_wav(Path(target or 'answer.wav').expanduser(), self.last.wav)}")


def ask_once(
    model: SpeechModel, question: Path, out: Path | None, as_json: bool, aloud: bool, sampling: Sampling
) -> None:
    """Answer one audio file: print the answer, write its sound to `out`, and play it if `aloud`."""
    from speechgpt.serve.sound_card import play
    from units.audio import save_wav

    answer = model.answer(question, sampling)
    spoken = None
    if answer.wav is not None:
        spoken = save_wav(out or Path(question.with_suffix(".answer.wav").name), answer.wav)
    if as_json:
        found = {
            "question": str(question),
            "transcript": answer.transcript,
            "answer": answer.text,
            "units": answer.units,
            "finished": answer.finished,
            "wav": None if spoken is None else str(spoken),
        }
        print(json.dumps(found))
    else:
        cut = "" if answer.finished else " (cut off)"
        # a system may answer without a transcript, or in text alone
        lines = [f"heard:  {answer.transcript}"] if answer.transcript is not None else []
        lines += [f"answer: {answer.text}"] + ([f"spoken: {spoken}"] if spoken else [])
        print("\n".join(lines) + cut)
    if aloud and spoken is not None:
        play(spoken)


def greeting(model: SpeechModel) -> str:
    """The first lines of a chat: the model, what it cannot do, and what can be typed."""
    lines = [model.name]
    missing = [verb for verb in ("answer", "transcribe", "say", "chat") if verb not in model.capabilities]
    if missing:
        able = ", ".join(sorted(model.capabilities)) or "nothing"
        lines.append(f"This model does not support: {', '.join(missing)}. It supports: {able}.")
    return "\n".join([*lines, HELP])


def chat(talk: Chat) -> None:
    """Read lines and answer them until there are no more."""
    with suppress(ImportError):
        import readline  # noqa: F401 - makes the typed line editable
    _keep_odd_bytes()
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        try:
            if line.strip() and not talk.handle(line):
                return
        except KeyboardInterrupt:
            print("\n(stopped)")
        except USER_ERRORS as error:
            print(error)


def _keep_odd_bytes() -> None:
    """Let lines hold bytes that are not in the terminal's encoding, as the name of a file may, and print all letters.

    Otherwise such a line would take those behind it along. A question with such bytes is a TextError.
    """
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


@command("speechgpt-cli", positional=False)
def main(
    model: str,
    ask: Path | None = None,
    out: Path | None = None,
    json: bool = False,
    play: bool = False,
    folder: Path = Path("answers"),
    memory: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    sampling: Sampling = Sampling(),
) -> None:
    """Talk with a model.

    Args:
        model: model folder, such as runs/toy/model, or the id of a model on the hub
        ask: answer this one audio file and stop
        out: where the spoken answer of --ask goes
        json: print the answer of --ask as one line of JSON
        play: play spoken answers
        folder: where the chat keeps its turns and spoken answers
        memory: how many earlier turns the model gets with a question; earlier turns confuse a model that was trained
            on single questions, as the toy was
        device: cpu or cuda; a GPU if there is one, when not given
        dtype: of the model's weights: float32, bfloat16 or float16; as they are stored if not given
        sampling: how tokens are drawn
    """
    if ask is None and (out is not None or json):
        raise ValueError("--out and --json need --ask FILE; the chat writes its answers into --folder")
    check_range("memory", memory, 0)
    from speechgpt.open_model import open_model
    from speechgpt.serve.sound_card import named_audio

    opened = open_model(model, device, dtype)
    if ask is not None:
        ask_once(opened, named_audio(str(ask)) or ask, out, json, play, sampling)
        return
    print(greeting(opened))
    chat(Chat(opened, folder, play, sampling, memory))


if __name__ == "__main__":
    main.cli()
