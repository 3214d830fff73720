"""The tasks. Each lies in a file of its own: what is measured, how it is scored, and its place in the report.

To add a task, write such a file and add its TASK to TASKS. All tasks use the test split.
"""

from __future__ import annotations

from eval.tasks import asr, latency, new_voice, originals, speed, text_cost, tts, voicebench
from eval.tasks.instructed import labels, translation
from eval.tasks.likelihood import prosaudit, salmon, sblimp, storycloze, swuggy
from eval.tasks.qa import answer_speech, judged, qa_match, spoken_qa, text_qa
from eval.tasks.signal import opinion, pace, speaker_similarity
from eval.tasks.task import Task

TASKS: tuple[Task, ...] = (  # in the order in which they run and stand in the report
    originals.TASK,
    asr.TASK,
    spoken_qa.TASK,
    answer_speech.TASK,
    new_voice.TASK,
    text_qa.TASK,
    tts.TASK,
    speed.TASK,
    latency.TASK,
    pace.TASK,
    opinion.DNSMOS,
    opinion.PLCMOS,
    opinion.UTMOS,
    speaker_similarity.TASK,
    qa_match.TASK,
    voicebench.TASK,
    judged.TASK,
    translation.TASK,
    labels.TASK,
    text_cost.PERPLEXITY,
    text_cost.CHOICES,
    text_cost.PLAIN_QUESTIONS,
    text_cost.REFUSED_REQUESTS,
    swuggy.TASK,
    sblimp.TASK,
    prosaudit.TASK,
    storycloze.SPOKEN,
    storycloze.TOPIC,
    salmon.TASK,
)
