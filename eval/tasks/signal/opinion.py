"""dnsmos, plcmos and utmos: opinion scores of spoken answers, 1 to 5, beside those of the answer voice's recordings."""

from __future__ import annotations

from eval.measurement import Measurement
from eval.signal import mos, utmos
from eval.tasks.signal.spoken import OF_RECORDINGS, opinions
from eval.tasks.task import Beside, Figure, Outcome, Task

THE_VOICE = "recordings of the answer voice"


def dnsmos_listener(measurement: Measurement) -> str:
    """Who estimates. Raises NotMeasured."""
    return f"DNSMOS, {mos.version()}"


def plcmos_listener(measurement: Measurement) -> str:
    """Who estimates. Raises NotMeasured."""
    return f"PLCMOS, {mos.version()}, the same {mos.RATERS} raters"


def utmos_listener(measurement: Measurement) -> str:
    """Who estimates. Raises NotMeasured."""
    return f"UTMOS, {utmos.name_of(measurement.signal.utmos)}"


def dnsmos(measurement: Measurement) -> Outcome:
    """DNSMOS P.835 overall; also signal, background, and P.808."""
    listener = dnsmos_listener(measurement)
    return opinions(measurement, mos.Dnsmos().scores, "overall", "DNSMOS", listener)


def plcmos(measurement: Measurement) -> Outcome:
    """PLCMOS: gaps in the sound, and their repair."""
    listener, network = plcmos_listener(measurement), mos.Plcmos()
    return opinions(measurement, lambda wav: {"plcmos": network.score(wav)}, "plcmos", "PLCMOS", listener)


def naturalness(measurement: Measurement) -> Outcome:
    """UTMOS: how natural the speech sounds."""
    listener = utmos_listener(measurement)
    assert measurement.signal.utmos is not None  # its name was read
    score = utmos.open_utmos(measurement.signal.utmos, measurement.device)
    return opinions(measurement, lambda wav: {"utmos": score(wav)}, "utmos", "UTMOS", listener)


def _row(task: str, name: str, meaning: str, key: str, score: str) -> Figure:
    beside = Beside(task, f"{OF_RECORDINGS}/{score}", THE_VOICE)
    return Figure(name, meaning, key, unit="", higher_is_better=True, beside=beside)


DNSMOS = Task(
    "dnsmos",
    dnsmos,
    "overall",
    higher_is_better=True,
    version=1,
    figures=(
        _row("dnsmos", "dnsmos_overall", "DNSMOS P.835 of spoken answers, 1 to 5", "", "overall"),
        _row("dnsmos", "dnsmos_signal", "... speech alone", "signal", "signal"),
        _row("dnsmos", "dnsmos_background", "... background alone", "background", "background"),
        _row("dnsmos", "dnsmos_p808", "... P.808", "p808", "p808"),
    ),
    optional=True,
    asked=True,
    listener=dnsmos_listener,
)
PLCMOS = Task(
    "plcmos",
    plcmos,
    "plcmos",
    higher_is_better=True,
    version=1,
    figures=(_row("plcmos", "plcmos", "PLCMOS of spoken answers, 1 to 5", "", "plcmos"),),
    optional=True,
    asked=True,
    listener=plcmos_listener,
)
UTMOS = Task(
    "utmos",
    naturalness,
    "utmos",
    higher_is_better=True,
    version=1,
    figures=(_row("utmos", "utmos", "UTMOS of spoken answers, 1 to 5", "", "utmos"),),
    optional=True,
    asked=True,
    listener=utmos_listener,
)
