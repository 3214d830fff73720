"""The options of the benches that have many. A light file, so that `--help` needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from units.runtime.settings import check_types

INITS = ("random", "mean", "centres")  # of new rows
WARM_UP = 3  # steps that are not timed


@dataclass(frozen=True)
class TrainOptions:
    """What is trained, and what is written."""

    shape: Literal["toy", "smol", "1b"] = "toy"
    """toy, smol (SmolLM2-135M, widened) or 1b."""
    steps: int = 60
    """Steps of each training; the first three are not timed."""
    batch: int = 6
    """Blocks, or conversations, of a step."""
    block: int = 512
    """Tokens of a block, and of the longest conversation."""
    units: int = 100_000_000
    """Size of the unit set that data starts from."""
    seed: int = 0
    """Of weights, records and order."""
    attention: str = "auto"
    """Of packed blocks, as a stage's config names it."""
    checkpointing: bool = False
    """Recompute activations instead of keeping them, which costs a third of the speed."""
    compile: bool = False
    """Compile the model with torch.compile, in our way."""
    upstream: bool = True
    """Train in upstream's way too."""
    out: Path | None = None
    """Json file for the figures."""

    def __post_init__(self) -> None:
        check_types(self)
        for name, least in (("steps", WARM_UP + 1), ("batch", 1), ("block", 16), ("units", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: at least {least}")


@dataclass(frozen=True)
class VocoderOptions:
    """What is decoded, and what is written."""

    channels: int = 512
    """Channels of HiFi-GAN at 50 frames per second, and width of the Vocos-style head; 512 is the published size."""
    units: int = 1000
    """Codebook size."""
    utterances: int = 8
    """How many are decoded."""
    seconds: float = 4.0
    """Mean length of an utterance."""
    rounds: int = 5
    """Passes of each way."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cpu or cuda."""
    threads: int = 2
    """CPU threads."""
    out: Path | None = None
    """Json file for the figures."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("channels", "units", "utterances", "rounds", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if not self.seconds > 0:
            raise ValueError(f"seconds is {self.seconds}; allowed: above 0")


@dataclass(frozen=True)
class WideningOptions:
    """What is widened, by what it learns, and how long."""

    llm: Path = Path("runs/real/smollm2-135m-instruct")
    """Folder of a text LLM."""
    units: Path = Path("runs/smol/units/train")
    """Unit set to learn and to hold out."""
    encoder: Path = Path("units/codec/unit_encoder")
    """Unit encoder folder of these units."""
    texts: Path = Path("eval/kept/texts.txt")
    """Texts, one a line, whose loss says what the LLM keeps."""
    inits: list[str] = field(default_factory=lambda: ["random", "mean", "mean:0.3", "centres", "centres:0.3"])
    """Initialisations, each as INIT or INIT:SCALE."""
    rates: list[float] = field(default_factory=lambda: [1e-4, 5e-4])
    """Learning rates."""
    warm_ups: list[int] = field(default_factory=lambda: [0])
    """Steps in which the embedding rows alone learn, before all weights do."""
    rows_rates: list[float] = field(default_factory=lambda: [1.0])
    """Learning rates of the embedding rows, in that of the other weights."""
    words: list[str] = field(default_factory=lambda: ["learn"])
    """Whether the rows of words learn: learn or keep."""
    steps: list[int] = field(default_factory=lambda: [30, 100])
    """Steps after which held-out loss is measured; the largest ends a run."""
    batch: int = 1
    """Blocks of a step."""
    block: int = 256
    """Tokens of a block."""
    held_out: int = 8
    """Blocks that are held out."""
    threads: int = 1
    """CPU threads."""
    seed: int = 0
    """Of new rows and of the order of documents."""

    def __post_init__(self) -> None:
        check_types(self)
        for name, least in (("batch", 1), ("block", 16), ("held_out", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: at least {least}")
        for name in ("inits", "rates", "warm_ups", "rows_rates", "words", "steps"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; give at least one")
        if min(self.steps) < 1 or min(self.warm_ups) < 0 or not min(*self.rates, *self.rows_rates) > 0:
            raise ValueError("steps must be above 0, warm_ups at least 0, and rates and rows_rates above 0")
        if wrong := set(self.words) - {"learn", "keep"}:
            raise ValueError(f"words has {', '.join(sorted(wrong))}; allowed: learn, keep")
        for one in self.inits:
            init, _, scale = one.partition(":")
            if init not in INITS or (scale and not _is_scale(scale)):
                raise ValueError(f"inits has {one!r}; allowed: {', '.join(INITS)}, or with a scale, mean:0.3")


def _is_scale(text: str) -> bool:
    try:
        return 0 <= float(text) < float("inf")
    except ValueError:
        return False
