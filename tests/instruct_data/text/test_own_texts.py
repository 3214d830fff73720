"""A language model's own texts: drawn anew for another seed, the same for the same, cached, and counted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from instruct_data.text.completion import CachedModel, CompletionError, LocalModel, TruncatedText
from instruct_data.text.own import texts as own_texts
from instruct_data.text.own.texts import OwnTextConfig, requests_about_words
from instruct_data.text.reasons import TextReason
from instruct_data.text.sources import NothingKept
from units.runtime.command import SOME_REFUSED

TEXTS = {
    "whole": "A text of some words.\n\nAnd a second part.",
    "cut": TruncatedText("it goes on and"),
    "brief": "No.",
    "failed": CompletionError(TextReason.NO_COMPLETION, "no"),
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests that reach the model, which writes TEXTS."""
    requests: list[str] = []

    def completions(self: LocalModel, some: Sequence[str]) -> Iterator[tuple[int, object]]:
        for number, request in enumerate(some):
            requests.append(request)
            yield number, TEXTS[request]

    monkeypatch.setattr(LocalModel, "completions", completions)
    return requests


def config(folder: Path, lines: str, **changes) -> OwnTextConfig:
    (folder / "r.txt").write_text(lines)
    return OwnTextConfig(local="tiny", requests=folder / "r.txt", least_characters=10, at_once=2, **changes)


def test_texts_are_kept_cached_or_counted(asked: list[str], tmp_path: Path) -> None:
    out = tmp_path / "own.txt"
    assert own_texts.main(out, config(tmp_path, "whole\ncut\n\nbrief\nfailed\n")) == SOME_REFUSED
    assert out.read_text() == "A text of some words. And a second part.\nit goes on and\n"
    listed = [json.loads(line) for line in (tmp_path / "own.txt.refused.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in listed} == {"r.txt:4": "short_text", "r.txt:5": "no_completion"}
    before = len(asked)
    own_texts.main(out, config(tmp_path, "whole\ncut\n\nbrief\nfailed\n"))
    assert asked[before:] == ["failed"]  # texts at the token limit are cached too: it is part of the model's name
    own_texts.main(out, config(tmp_path, "whole\n", most_tokens=64))
    assert asked[before:] == ["failed", "whole"]


def test_short_texts_alone_are_no_failure(asked: list[str], tmp_path: Path) -> None:
    assert own_texts.main(tmp_path / "own.txt", config(tmp_path, "whole\nbrief\n")) == 0
    with pytest.raises(NothingKept, match="no text of tiny to 1 requests"):
        own_texts.main(tmp_path / "none.txt", config(tmp_path, "brief\n"))
    assert not (tmp_path / "none.txt").exists()


def test_requests_are_about_english_words_and_the_same_for_a_seed() -> None:
    pytest.importorskip("pocketsphinx")
    found = list(requests_about_words(300))
    assert found == list(requests_about_words(300)) != list(requests_about_words(300, seed=1))
    assert list(requests_about_words(20)) == found[:20]
    assert len(set(found)) > 290 and all("{" not in request for request in found)


def test_draws_repeat_for_a_seed_alone(widened: Path, tmp_path: Path) -> None:
    def drawn(cache: str, **changes) -> list[str]:
        model = LocalModel(str(widened), most_tokens=8, **{"temperature": 1.0, **changes})
        return [str(text) for text in CachedModel(model, tmp_path / cache, truncated=True).complete(["one", "two"])]

    torch.manual_seed(1)
    first, state = drawn("a"), torch.get_rng_state()
    torch.manual_seed(2)
    assert drawn("b") == first
    assert drawn("c", seed=1) != first != drawn("d", temperature=0.0)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator is left as it was
    assert drawn("a", seed=1) == drawn("c", seed=1)  # one cache for several seeds


@pytest.mark.parametrize(
    ("setting", "value"), [("count", 0), ("least_characters", 0), ("temperature", 0), ("temperature", -0.1)]
)
def test_a_setting_out_of_range_is_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting.replace("_", ".")):
        OwnTextConfig(local="tiny", **{setting: value})
