"""Speak a corpus for a system that listens: open English in many TTS voices to train on, and in another to measure.

    python -m instruct_data.speech.open_corpus --out runs/smol/corpus --lines 8000
    python -m instruct_data.speech.open_corpus --out runs/smol/corpus --answers 3000    # for one that speaks, too

Writes `train.jsonl` and `test.jsonl`, and `answers.jsonl` in the answer voice: manifests with texts and speakers.
Sentences are those of instruct_data/speech/codec_corpus.py. Most lines are in voices that are made of recordings of
people, which sound more like people than espeak's, and the others in espeak's many. No sentence and no voice of the
test is in the training. A killed run continues where it stopped.
"""

from __future__ import annotations

from pathlib import Path

from instruct_data.speech.codec_corpus import answer_lines, voice_lines
from instruct_data.speech.open_sentences import open_sentences
from instruct_data.speech.speak import Line, speak_lines
from units.runtime.command import SOME_REFUSED, check_range, command

RECORDED = ("flite:slt", "flite:kal16", "flite:rms")
RECORDED_SHARE = 0.6  # of the lines that they speak
UNHEARD = "flite:awb"  # the voice that no line of the training is spoken in
TEST_SEED = 1000  # of its sentences, beside the seed of the corpus


def test_lines(count: int, unlike: set[str], seed: int = 0) -> list[Line]:
    """`count` lines in the unheard voice.

    Args:
        unlike: sentences that none of them may be.
    """
    chosen = [text for text in open_sentences(2 * count, seed + TEST_SEED) if text not in unlike][:count]
    return [Line(f"t{i:06d}", text, UNHEARD) for i, text in enumerate(chosen)]


@command("instruct-open-corpus", positional=False)
def main(
    out: Path, lines: int = 8000, test: int = 200, answers: int = 0, workers: int | None = None, seed: int = 0
) -> int | None:
    """Speak a corpus for a system that listens.

    Args:
        out: folder for the wavs and the manifests
        lines: utterances to train on, 3 to 4 seconds each
        test: utterances to measure on, in the unheard voice
        answers: utterances in the answer voice of the codec's vocoder, to train speaking
        workers: processes; one for each core if not given
        seed: draws sentences and voices
    """
    check_range("lines", lines, 1)
    check_range("test", test, 1)
    check_range("answers", answers, 0)
    train = voice_lines(lines, seed, RECORDED, RECORDED_SHARE)
    measured = test_lines(test, {line.text for line in train}, seed)
    spoken = [speak_lines(measured, out, "test", workers), speak_lines(train, out, "train", workers)]
    if answers:
        asked = {line.text for line in measured}
        said = [line for line in answer_lines(answers, seed) if line.text not in asked]
        spoken.append(speak_lines(said, out, "answers", workers))
    print(", ".join(str(one.manifest) for one in spoken))
    return SOME_REFUSED if any(one.refused for one in spoken) else None


if __name__ == "__main__":
    main.cli()
