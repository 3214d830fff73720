"""Sound in a terminal: audio files that are typed or dragged into it, the microphone, and a player for wavs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from units.audio import SAMPLE_RATE
from units.corpus.layouts import AUDIO_SUFFIXES

UNREADABLE = {".m4a", ".aac", ".webm", ".wma"}  # audio that load_wav refuses by name
LONGEST = 600.0  # seconds of one recording
PLAYERS = (["ffplay", "-nodisp", "-autoexit", "-loglevel", "quiet"], ["aplay", "-q"], ["afplay"], ["play", "-q"])


def named_audio(line: str) -> Path | None:
    """The path that a typed line names, or None if the line is words.

    A line names a path if it has an audio file's suffix, is an existing file, or holds a separator and exists. Quotes
    around it, which terminals add to dragged files, and `~` are understood.
    """
    if len(line) > 1 and line[0] == line[-1] and line[0] in "'\"":
        line = line[1:-1]
    try:
        path = Path(line).expanduser()
        if path.suffix.lower() in AUDIO_SUFFIXES | UNREADABLE or path.is_file():
            return path
        return path if os.sep in line and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # longer than any path; no such home; a zero byte
        return None


def record(seconds: str) -> np.ndarray:
    """Record from the microphone -> wav (T,) at 16 kHz.

    Raises:
        ValueError: `seconds` is not a number in range, or nothing can be recorded.
    """
    try:
        wanted = float(seconds)
    except ValueError:
        wanted = 0.0
    if not 0 < wanted <= LONGEST:
        raise ValueError(f"record for {seconds!r} seconds? It is a number above 0 and at most {LONGEST:g}")
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise ValueError("recording needs a microphone and the package sounddevice: pip install sounddevice") from error
    print(f"recording for {wanted:g} s ...", file=sys.stderr)
    try:
        wav = sounddevice.rec(round(wanted * SAMPLE_RATE), samplerate=SAMPLE_RATE, channels=1, dtype="float32")
        sounddevice.wait()
    except sounddevice.PortAudioError as error:
        raise ValueError(f"nothing was recorded ({error}); is a microphone plugged in?") from error
    return wav[:, 0]


def play(path: Path) -> None:
    """Play a wav with the first player that is installed; print a line if there is none."""
    for command in PLAYERS:
        if shutil.which(command[0]):
            subprocess.run([*command, str(path)], check=False)
            return
    names = ", ".join(player[0] for player in PLAYERS)
    print(f"there is no player to play it: install one of {names}", file=sys.stderr)
