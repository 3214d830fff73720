"""Measure a model on the test split of a corpus, or on any manifest: one results file per task.

    eval-run --model runs/toy/model --corpus runs/toy/corpus --out /tmp/quick --tasks asr,spoken_qa --limit 10
    eval-run --model runs/toy/model --corpus runs/toy/corpus --out runs/toy/results
    eval-run --model runs/mine/model --corpus dev.jsonl --out /tmp/dev      # a manifest: transcription and speed only
    eval-run --model runs/mine/model --corpus dev.jsonl --out /tmp/open --asr whisper:openai/whisper-small.en
    eval-run --model my_models:baseline --corpus runs/toy/corpus --out /tmp/baseline
    eval-run --model cascade:whisper:FOLDER,LLM_FOLDER,flite:slt --corpus runs/toy/corpus --out /tmp/cascade
    eval-run --model cascade:transcripts,LLM_FOLDER --corpus runs/toy/corpus --out /tmp/topline

    eval-run --model runs/toy/model --corpus runs/eval_sets --out results --tasks swuggy,sblimp
    eval-run --model lm:slprl/slam --units.encoder ENCODER --units.spelling '<Un{}>' --corpus runs/eval_sets --out slam

A task is skipped, with the reason, if the model or the corpus lacks what it needs. A task whose results file exists,
for the same model, corpus, device, limits and evaluation ASR, is not run again unless `--force` is given.
"""

from __future__ import annotations

from pathlib import Path

from eval.models.spelling import Speaking
from eval.signal.settings import SignalModels
from units.runtime.command import check_range, command


@command("eval-run", positional=False)
def main(
    model: str,
    corpus: Path,
    out: Path,
    tasks: str | None = None,
    limit: int | None = None,
    reply_tokens: int | None = None,
    force: bool = False,
    device: str = "cpu",
    grammar: Path | None = None,
    asr: str | None = None,
    units: Speaking = Speaking(),
    judge: str | None = None,
    judge_prompt: Path | None = None,
    keep: int = 5,
    signal: SignalModels = SignalModels(),
) -> None:
    """Measure a model on a corpus.

    Args:
        model: a model folder; cascade:ASR,LLM[,VOICE], a recogniser (as for --asr; `transcripts` knows what is said), a
            text LLM (a folder, a hub id or URL#MODEL) and a TTS voice; lm:FOLDER_OR_HUB_ID, any causal language model
            over units; scores:FOLDER, a ZeroSpeech submission; or module:function, which returns any model with
            answer(wav)
        corpus: a folder as instruct_data.toy writes it (test.jsonl is enough), or a manifest
        out: the folder for the results
        tasks: only these tasks, separated by commas; some run only if they are named: latency, dnsmos, plcmos, utmos,
            speaker_similarity
        limit: the most examples of each list, evenly spaced, for a quick run
        reply_tokens: the longest reply, in the model's tokens, of text and of units together; without it, a model that
            does not end its replies writes on until its context is full
        force: run finished tasks again
        device: where the model runs, such as cpu or cuda
        grammar: JSGF grammar of the evaluation ASR that transcribes the model's speech; default: the corpus folder's
        asr: the evaluation ASR: whisper:FOLDER_OR_HUB_ID or faster-whisper:FOLDER_OR_NAME (an open vocabulary), or
            pocketsphinx, which has a grammar; default: pocketsphinx if there is a grammar
        units: how units become text, for lm:FOLDER
        judge: a language model that grades replies: URL#MODEL of a server with OpenAI's chat completions (the key from
            OPENAI_API_KEY), or a folder or hub id of a causal language model
        signal: networks that judge the sound of answers, for the tasks utmos and speaker_similarity
        keep: how many spoken answers are kept as audio in OUT/answers, with the lists wav.scp and text for VERSA
        judge_prompt: a file with the judge's prompt, with {question} and {reply}; default: eval/prompts/judge.txt
    """
    from eval.asr.recogniser import open_asr
    from eval.evaluation import evaluate, tasks_of
    from eval.judge import PROMPT, open_judge
    from eval.measurement import Measurement
    from eval.model import open_measured_model
    from eval.test_set import TestSet

    check_range("keep", keep, 0)
    check_range("reply_tokens", reply_tokens, 1)
    names = [name.strip() for name in tasks.split(",")] if tasks else None
    tasks_of(names)  # a misspelled name is reported before the model is loaded
    test_set = TestSet(corpus, grammar, limit)
    recogniser = open_asr(asr, test_set.grammar, device)
    grader = open_judge(judge, out / "judge.cache", device, judge_prompt or PROMPT) if judge else None
    measured = open_measured_model(model, device, test_set, units)
    measurement = Measurement(
        measured, test_set, recogniser, out / "answers", device, grader, keep, signal, reply_tokens
    )
    evaluate(measurement, out, names, force)


if __name__ == "__main__":
    main.cli()
