"""Settings of preference pairs: how candidates are drawn, scored and chosen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from units.runtime.command import check_range
from units.runtime.settings import check_types


@dataclass(frozen=True)
class Pairing:
    """How candidates are drawn, scored and chosen."""

    candidates: int = 4
    """How often each reply or text is spoken, or each utterance continued."""
    beginning: int = 50
    """Units of an utterance that its continuations begin with, where the source is a unit set; shorter ones are left
    out."""
    temperature: float = 1.0
    """Of the draws; each candidate is drawn at random, so it is above 0."""
    top_p: float = 1.0
    """Draw from the most likely units whose probabilities add up to this; 1 draws from all."""
    recorded: bool = False
    """The set's own reply is a candidate too, behind those that are drawn: it is chosen where none of them is as well
    understood (as in self-play fine-tuning: Chen et al. 2024, arXiv 2401.01335). A text file has no recordings."""
    longest: int = 512
    """The longest candidate, in tokens; one that is not at its end there is left out."""
    hearing: bool = True
    """Score by the word error rate of the model's own transcript of a candidate."""
    asr: str | None = None
    """Score by an evaluation ASR too: `whisper:FOLDER_OR_HUB_ID`, `faster-whisper:FOLDER_OR_NAME` or `pocketsphinx`.
    The model folder then needs a vocoder. Report no figures by the same ASR: the model learns to please it."""
    grammar: Path | None = None
    """JSGF grammar of pocketsphinx."""
    dnsmos: float = 0.0
    """Weight of the sound: a candidate for which DNSMOS estimates an opinion of 1, the worst, counts as if so many more
    of its words were wrong as one of 5, the best. Needs a vocoder, and `pip install '.[signal]'`."""
    judge: str | None = None
    """A language model that grades what is heard of a candidate: URL#MODEL of a server with OpenAI's chat completions,
    or a folder or hub id of a causal LM. It reads the transcript of the evaluation ASR, or of the model itself where
    there is none. A candidate without a grade is left out. Continuations need one: nothing else says what is good."""
    judge_prompt: Path | None = None
    """The judge's prompt, with {question} and {reply}; default: that of `eval-run` for replies, and
    instruct_data/prompts/judge_continuation.txt for continuations."""
    judge_weight: float = 1.0
    """A candidate with the worst grades counts as if so many more of its words were wrong as one with the best."""
    worst_chosen: float = 0.0
    """The highest word error rate of a chosen reply; 0 chooses only those that are understood word for word."""
    margin: float = 0.1
    """The least difference between the two of a pair, in word error rate with what sound and judge add."""
    tasks: list[str] | None = None
    """Use only these tasks of the conversation set, such as chain and tts."""
    limit: int = 0
    """Use only so many of its replies, texts or utterances, spread evenly over the source; 0 uses all."""
    seed: int = 0
    """Of the draws."""
    batch: int = 64
    """Candidates that are drawn at once."""
    shard_size: int = 64
    """Replies, texts or utterances of a shard: what a killed run loses at most, and what a worker does at a time."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range("candidates", self.candidates, 2, 100)
        check_range("temperature", self.temperature, 0.001, 1000)
        check_range("top_p", self.top_p, 0, 1, exclusive=True)
        for name in ("beginning", "longest", "batch", "shard_size"):
            check_range(name, getattr(self, name), 1)
        check_range("limit", self.limit, 0)
        check_range("seed", self.seed, 0, 2**31)
        check_range("dnsmos", self.dnsmos, 0)
        check_range("judge_weight", self.judge_weight, 0, exclusive=True)
        check_range("worst_chosen", self.worst_chosen, 0)
        check_range("margin", self.margin, 0, exclusive=True)
        if not self.hearing and self.asr is None:
            raise ValueError("hearing is off and no asr is given: nothing tells candidates apart; give one of the two")
