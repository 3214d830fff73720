"""The `speechgpt-cli` command: talk with a model.

    speechgpt-cli --model runs/toy/model                              # chat: type text, or the path of an audio file
    speechgpt-cli --model runs/toy/model --ask q.wav --out a.wav      # one question, one answer
    speechgpt-cli --model runs/toy/model --ask q.wav --json

In the chat: text is answered in text, audio by transcript, answer and a wav; `/say TEXT` reads aloud, `/hear FILE` only
transcribes, `/record` listens to the microphone, `/save FILE` keeps the last answer, `/help`, `/reset`, `/quit`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from speechgpt.generate import Sampling
from speechgpt.inference import Answer, SpeechGPT, chat_model
from units.audio import save_wav
from units.layouts import AUDIO_SUFFIXES

USER_ERRORS = (OSError, ValueError)  # AudioError, CodebookMismatch and VocabularyError are ValueErrors
HELP = __doc__.split("\n\n")[-1]
PLAYERS = (["ffplay", "-nodisp", "-autoexit", "-loglevel", "quiet"], ["aplay", "-q"], ["afplay"], ["play", "-q"])


@dataclass
class Chat:
    """One interactive chat. Answers are written to `folder/answer_N.wav` and played on request."""

    gpt: SpeechGPT
    folder: Path
    play: bool
    sampling: Sampling
    answers: list[Answer] = field(default_factory=list)

    def handle(self, line: str) -> str | None:
        """What to print for one line the user typed; None ends the chat."""
        command, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if command in ("/quit", "/exit"):
            return None
        if command == "/help":
            return HELP
        if command == "/reset":
            self.answers.clear()
            return "forgotten"
        if command == "/save":
            return self._save(rest)
        if command == "/say":
            return self._spoken(self.gpt.say_batch([rest], self.sampling)[0]) if rest else "say what? /say TEXT"
        if command == "/hear":
            return self.gpt.transcribe_batch([rest], self.sampling)[0] if rest else "hear what? /hear FILE"
        if command == "/record":
            return self._spoken(self.gpt.answer(record(float(rest or 4)), self.sampling))
        if names_audio(line.strip()):
            return self._spoken(self.gpt.answer(line.strip(), self.sampling))
        if command.startswith("/"):
            return f"unknown command {command}; {HELP}"
        return self.gpt.chat_batch([line.strip()], self.sampling)[0]

    def _spoken(self, answer: Answer) -> str:
        self.answers.append(answer)
        lines = [f"heard:  {answer.transcript}"] if answer.transcript is not None else []
        lines += [f"answer: {answer.text}"] if answer.text is not None else []
        if answer.wav is None:
            return "\n".join([*lines, "(the model gave no speech)"])
        path = save_wav(self.folder / f"answer_{len(self.answers)}.wav", answer.wav)
        if self.play:
            play(path)
        return "\n".join([*lines, f"spoken: {path}"])

    def _save(self, target: str) -> str:
        if not self.answers or self.answers[-1].wav is None:
            return "there is no spoken answer to save yet"
        return f"saved {save_wav(target or 'answer.wav', self.answers[-1].wav)}"


def names_audio(line: str) -> bool:
    """Whether a line is the path of an audio file, there or not, or of anything else that is there, rather than words."""
    try:
        return (
            Path(line).suffix.lower() in AUDIO_SUFFIXES
            or Path(line).is_file()
            or (os.sep in line and os.path.exists(line))
        )
    except OSError:  # longer than any path
        return False


def record(seconds: float) -> np.ndarray:
    """Listen to the microphone. Raises ValueError where no recorder is installed."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise ValueError("recording needs a microphone and the package sounddevice: pip install sounddevice") from error
    print(f"listening for {seconds:g} s ...", file=sys.stderr)
    wav = sounddevice.rec(int(seconds * 16_000), samplerate=16_000, channels=1, dtype="float32")
    sounddevice.wait()
    return wav[:, 0]


def play(path: Path) -> None:
    """Play a wav with whatever player is installed; silently does nothing without one."""
    for command in PLAYERS:
        if shutil.which(command[0]):
            subprocess.run([*command, str(path)], check=False)
            return


def ask_once(gpt: SpeechGPT, question: Path, out: Path | None, as_json: bool, sampling: Sampling) -> None:
    """Answer one audio file, print, and write the spoken answer."""
    answer = gpt.answer(question, sampling)
    if answer.wav is not None:
        out = save_wav(out or question.with_suffix(".answer.wav").name, answer.wav)
    if as_json:
        spoken = str(out) if answer.wav is not None else None
        print(json.dumps({"question": str(question), "transcript": answer.transcript, "answer": answer.text,
                          "units": answer.units, "wav": spoken}))  # fmt: skip
        return
    print(f"heard:  {answer.transcript}\nanswer: {answer.text}\nspoken: {out if answer.wav is not None else 'nothing'}")


def main(
    model: Path, ask: Path | None = None, out: Path | None = None, json: bool = False, play: bool = False,
    folder: Path = Path("answers"), device: str | None = None, sampling: Sampling = Sampling(),
) -> None:  # fmt: skip
    """Talk with a SpeechGPT model.

    Args:
        model: model folder, such as runs/toy/model
        ask: answer this one audio file and stop
        out: where the spoken answer of --ask goes
        json: print the answer of --ask as one line of JSON
        play: play spoken answers
        folder: where the chat's spoken answers go
        device: cpu or cuda; the best there is if not given
        sampling: how tokens are drawn
    """
    gpt = chat_model(model, device)
    if ask is not None:
        ask_once(gpt, ask, out, json, sampling)
        return
    chat = Chat(gpt, folder, play, sampling)
    print(f"{gpt.facts.codebook.name}, {gpt.facts.stage}. {HELP}")
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not line.strip():
            continue
        try:
            said = chat.handle(line)
        except USER_ERRORS as error:
            said = str(error)
        if said is None:
            return
        print(said)


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
