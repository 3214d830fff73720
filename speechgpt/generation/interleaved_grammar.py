"""The grammar of interleaved replies: exactly what `InterleavedReplies.stretches` makes.

A state counts the tokens of its stretch, so that text gives way to units, and units to text, at the right place. With
`KnownTexts` the texts of a batch are given, and only the units between them are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speechgpt.interleaving import InterleavedReplies
from speechgpt.vocab import EOA, TA, TQ, UA
from units.notation import EOSP, SOSP

Table = dict[str, dict[str, str]]  # state -> class of the next token -> next state; what is not listed is not allowed


@dataclass(frozen=True)
class KnownTexts:
    """A form of reply: each row goes on behind its first `[ta]`, and says a text that is given.

    texts: token ids of each row's text, at least one, with the semicolon that closes it.
    """

    texts: tuple[tuple[int, ...], ...]

    def of(self, rows: Sequence[int]) -> KnownTexts:
        """Those of some rows."""
        return KnownTexts(tuple(self.texts[row] for row in rows))


def interleaved(how: InterleavedReplies) -> Table:
    """The states of a whole reply. The first one is where it begins."""
    return {
        "start": {TQ: "transcript", "text": "transcript"},
        "transcript": {"text": "transcript", TA: "text 0"},
        **{f"text {i}": {"text": f"text {i + 1}", **({UA: "last"} if i else {})} for i in range(how.text)},
        f"text {how.text}": {"text": "rest", UA: "full"},
        "rest": {"text": "rest", UA: "few"},  # longer than a stretch, so it is the last one: few units follow
        "full": {SOSP: "full 0"},
        **_counted("full", how.units),
        f"full {how.units}": {"unit": "speaking", EOSP: "turn"},  # the text may have ended with a full stretch
        "turn": {TA: "text 0", EOA: "end"},
        **_endings(how),
    }


def known(rows: KnownTexts, how: InterleavedReplies) -> tuple[Table, dict[str, int], list[str]]:
    """States of replies whose texts are given.

    Returns: the table; of states in which a text token follows, which one; the state in which each row begins.
    """
    table, wanted, begins = _endings(how), {}, []
    for row, text in enumerate(rows.texts):
        begins.append(f"{row} begin 0")
        for at, token in enumerate(text):
            after = f"{row} text {at + 1}"
            if at % how.text == 0:
                table[f"{row} begin {at}"] = {"text": after}
                wanted[f"{row} begin {at}"] = token
            if at and at % how.text == 0:  # a full stretch, and there is more: units follow, or all of the text
                table[f"{row} text {at}"] = {"text": f"{row} rest {at + 1}", UA: f"{row} units {at}"}
                table[f"{row} units {at}"] = {SOSP: f"{row} units {at} 0"}
                table |= _counted(f"{row} units {at}", how.units, ends=False)
                table[f"{row} units {at} {how.units}"] = {EOSP: f"{row} turn {at}"}
                table[f"{row} turn {at}"] = {TA: f"{row} begin {at}"}
            elif at:
                table[f"{row} text {at}"] = {"text": after}
            if at > how.text:
                table[f"{row} rest {at}"] = {"text": f"{row} rest {at + 1}"}
            wanted |= dict.fromkeys((f"{row} text {at}", f"{row} rest {at}"), token)
        table[f"{row} text {len(text)}"] = {UA: "last"}
        table[f"{row} rest {len(text)}"] = {UA: "few"}
    return table, {state: token for state, token in wanted.items() if state in table}, begins


def _endings(how: InterleavedReplies) -> Table:
    """From the last `[ua]` on: any number of units, or at most a stretch of them."""
    return {
        "last": {SOSP: "spoken"},
        "spoken": {"unit": "speaking"},
        "speaking": {"unit": "speaking", EOSP: "closed"},
        "few": {SOSP: "few 0"},
        **_counted("few", how.units),
        f"few {how.units}": {EOSP: "closed"},
        "closed": {EOA: "end"},
        "end": {EOA: "end"},  # a finished row waits for the others
    }


def _counted(name: str, count: int, ends: bool = True) -> Table:
    """States that count units up to `count`, whose own state is not among them. ends: the speech may end before."""
    return {
        f"{name} {i}": {"unit": f"{name} {i + 1}", **({EOSP: "closed"} if i and ends else {})} for i in range(count)
    }
