"""Speak the corpus that the shipped starter encoder is trained on: many voices, toy sentences and random English words.

    python -m instruct_data.toy.starter_corpus --out runs/starter/corpus

Six of seven lines are training sentences of the toy world (seed 0). Every seventh line is random words of the CMU
dictionary that comes with pocketsphinx (extra `eval`), so that all sounds of English occur. No dev or test question of
the toy world is in the corpus, and not the voice that the toy world keeps for `test_new_voice`.
"""

from __future__ import annotations

import random
from pathlib import Path

from instruct_data.speech.speak import Line, speak_lines
from instruct_data.toy.world import UNSEEN_STATEMENTS, toy_text
from units.runtime.command import check_range, command
from units.runtime.extras import required

ESPEAK_VARIANTS = (
    "f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m8 klatt klatt2 klatt4 Alex Alicia Andrea Andy Annie Denis Diogo Gene Hugo Jacky "
    "Lee Marco Michael Mike Reed adam anika belinda boris caleb david ed edward grandma grandpa gustave ian iven john "
    "linda marcelo max miguel norbert pablo paul quincy rob robert shelby steph travis victor zac"
).split()
VOICE_WEIGHTS = {
    "flite:slt": 16,
    "flite:awb": 12,
    "flite:kal16": 8,
    "espeak:en-us": 1,
    "espeak:gmw/en-GB-scotland": 1,
    "espeak:en-029": 1,
    **{f"espeak:en-us+{variant}": 1 for variant in ESPEAK_VARIANTS},
}


def starter_lines(count: int, seed: int = 0) -> list[Line]:
    """`count` lines, each with a random voice, rate, pitch and vocal-tract warp."""
    draw = random.Random(f"starter {seed}")
    text = toy_text(0)
    sentences = [sentence for q in text.questions["train"] for sentence in (q.question, q.answer)]
    sentences += text.statements[:-UNSEEN_STATEMENTS]
    words = _dictionary_words()
    voices, weights = list(VOICE_WEIGHTS), list(VOICE_WEIGHTS.values())
    lines = []
    for i in range(count):
        sentence = " ".join(draw.sample(words, draw.randint(3, 6))) if i % 7 == 0 else draw.choice(sentences)
        voice = draw.choices(voices, weights)[0]
        lines.append(Line(f"s{i:05d}", sentence, voice, _options(voice, draw)))
    return lines


def _options(voice: str, draw: random.Random) -> dict[str, float]:
    """A rate, a pitch, and a vocal tract up to 10 percent longer or shorter."""
    warp = round(draw.uniform(0.9, 1.1), 3)
    if voice.startswith("flite:"):
        return {"stretch": round(draw.uniform(0.85, 1.2), 3), "warp": warp}
    return {"speed": draw.randint(140, 195), "pitch": draw.randint(30, 70), "warp": warp}


def _dictionary_words() -> list[str]:
    """Lower-case words of three letters or more, without marks."""
    pocketsphinx = required("pocketsphinx", "eval")
    path = Path(pocketsphinx.get_model_path()) / "en-us" / "cmudict-en-us.dict"
    words = {line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    return sorted(word for word in words if word.isalpha() and len(word) > 2)


@command("instruct-starter-corpus", positional=False)
def main(out: Path, lines: int = 9000, workers: int | None = None) -> None:
    """Speak the starter corpus.

    Args:
        out: folder for the wavs and the manifest `starter.jsonl`
        lines: number of utterances, about 2 seconds each
        workers: processes; one for each core if not given
    """
    check_range("lines", lines, 1)
    check_range("workers", workers, 1)
    print(speak_lines(starter_lines(lines), out, "starter", workers).manifest)


if __name__ == "__main__":
    main.cli()
