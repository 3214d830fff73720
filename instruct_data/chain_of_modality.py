"""Chain-of-modality conversations: spoken question -> transcript, text answer, spoken answer.

SpeechGPT (Zhang et al. 2023, arXiv 2305.11000, section 3.1), in the form its authors released.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from instruct_data.text_sets import TextPair
from speechgpt.dialogue import Conversation, Message
from units.unit_set import UnitRecord


def chain_conversations(
    questions: Iterable[UnitRecord], pairs: Iterable[TextPair], spoken: Iterable[UnitRecord], refused: Counter
) -> Iterator[Conversation]:
    """One conversation for each spoken question whose answer somebody speaks.

    Args:
        questions: spoken questions; their text says which pair they are.
        pairs: questions and answers.
        spoken: utterances of the answer voice; their text says which answers they speak.
        refused: counts, by reason, the questions that were left out.
    """
    answers = {pair.question: pair.answer for pair in pairs}
    voice = {record.text: record.units.ids for record in spoken}
    for record in questions:
        answer = answers.get(record.text or "")
        if answer is None:
            refused["not a question of the text set"] += 1
        elif answer not in voice:
            refused["nobody speaks its answer"] += 1
        else:
            reply = Message("assistant", (record.text or "", answer, voice[answer]))
            yield Conversation((Message("human", (record.units.ids,)), reply), "chain", f"chain-{record.id}")
