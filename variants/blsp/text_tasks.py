"""Text tasks for stage 1: texts that an LLM is asked to repeat, beside the chats that it knows.

    python -m variants.blsp.text_tasks runs/toy/corpus/train.jsonl runs/toy/blsp_repeat.jsonl --instruction "please say"

Labels are written by the LLM itself, so it must be able to repeat before recordings are learned by repeating. A chat
model is; a small text LLM is taught by this set. The output is a text set:

    {"question": "please say the dog", "answer": "the dog", "family": "repeat"}
"""

from __future__ import annotations

from pathlib import Path

from units.runtime.command import command


@command("blsp-text-tasks")
def main(source: Path, out: Path, instruction: str = "please say") -> None:
    """Write a text set in which each text of a corpus is repeated.

    Args:
        source: a manifest with texts, or any source that units-extract takes
        out: the text set to write
        instruction: what stands before each text
    """
    from instruct_data.text.chats import TextChat, TextPair, write_chats
    from units.corpus.manifest import has_word
    from variants.blsp.data.examples import utterances_of

    texts = dict.fromkeys(text for one in utterances_of(source) if has_word(text := (one.text or "").strip()))
    if not texts:
        raise ValueError(f"{source} has no texts")
    chats = (TextChat((TextPair(f"{instruction} {text}".strip(), text, family="repeat"),)) for text in texts)
    kept, _ = write_chats(out, chats)
    print(f"{kept} texts to repeat in {out}")


if __name__ == "__main__":
    main.cli()
