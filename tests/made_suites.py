"""A small suite in ZeroSpeech's lexical layout, of tones instead of words."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from units.audio import SAMPLE_RATE, save_wav


def write_suite(folder: Path, ids: int = 2, odd: str | None = None) -> Path:
    """A folder with gold.csv and a right and a wrong wav for each id, in one voice.

    Args:
        odd: the name of the last wrong wav, instead of its own.
    """
    lines = ["filename,id,voice,frequency,word,phones,length,correct"]
    for number in range(ids):
        for correct in (1, 0):
            name = f"w{number}_{correct}"
            if odd and number == ids - 1 and not correct:
                name = odd
            steps = np.arange(SAMPLE_RATE // 2 + 800 * number) / SAMPLE_RATE
            tone = 0.3 * np.sin(2 * np.pi * (200 + 90 * number + 300 * correct) * steps * (1 + steps))
            save_wav(folder / f"{name}.wav", tone.astype(np.float32))
            lines.append(f"{name},{number},A,{number},word,w er d,3,{correct}")
    (folder / "gold.csv").write_text("\n".join(lines) + "\n")
    return folder
