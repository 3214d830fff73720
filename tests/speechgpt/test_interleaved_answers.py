"""SpeechGPT with interleaved replies: sound before the text ends, streams equal answers, candidates, history, facts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from completions_server import completions_server
from tiny_parts import K, talkative, tones

from speechgpt import inference
from speechgpt.answers import Answer, Candidate, Piece
from speechgpt.checkpoint import FILE
from speechgpt.dialogue import Conversation, Dialogue, Message
from speechgpt.generation import candidates
from speechgpt.generation.stream import FIRST_UNITS, ReplyStream
from speechgpt.inference import SpeechGPT
from speechgpt.interleaving import InterleavedReplies
from speechgpt.open_model import open_model
from speechgpt.sampling import Sampling
from speechgpt.vocab import TA, UA
from units.codebook import Units
from units.notation import EOSP
from units.vocoder.heads.configs import VocosConfig
from units.vocoder.unit_vocoder import UnitVocoder

HOW = {"text": 1, "units": 2}
TEXT = "one two three four five six seven one two three"
SPOKEN = tuple(unit % K for unit in range(90))


def woven_folder(model_folder: Path, folder: Path, how: object = HOW, **extra: object) -> Path:
    """A copy of a model folder whose facts say that replies are interleaved."""
    shutil.copytree(model_folder, folder)
    facts = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**facts, "extra": {"interleave_replies": how, **extra}}))
    return folder


def streaming(gpt: SpeechGPT) -> SpeechGPT:
    """With a vocoder that makes sound while units are still being drawn."""
    torch.manual_seed(5)
    gpt.vocoder = UnitVocoder(gpt.codebook, VocosConfig(width=16, blocks=1, embedding_dim=8, duration_width=8)).eval()
    return gpt


def alternating(gpt: SpeechGPT) -> SpeechGPT:
    """Let a random model end its stretches of text, and go on with another."""
    liking = torch.zeros(gpt.model.get_output_embeddings().weight.shape[0])
    special = gpt.dialogue.vocab.special_id
    liking[[special(word) for word in (TA, UA, EOSP)]] = torch.tensor([8.0, 12.0, 4.0])
    gpt.model.get_output_embeddings().register_forward_hook(lambda module, given, logits: logits + liking)
    return gpt


@pytest.fixture(scope="module")
def folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return woven_folder(model_folder, tmp_path_factory.mktemp("woven") / "model")


@pytest.fixture(scope="module")
def gpt(folder: Path) -> SpeechGPT:
    return streaming(alternating(SpeechGPT.from_pretrained(folder)))


def joined(pieces: list[Piece]) -> tuple[str, str, np.ndarray]:
    wavs = [piece.wav for piece in pieces if piece.wav is not None]
    return "".join(p.transcript for p in pieces), "".join(p.text for p in pieces), np.concatenate(wavs)


# --- streams


@pytest.mark.parametrize("candidates", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_joined_pieces_equal_the_answer(gpt: SpeechGPT, candidates: int, seed: int) -> None:
    sampling = Sampling(temperature=1.0, seed=seed, max_new_tokens=150, candidates=candidates)
    whole = gpt.answer(tones(0.4, seed), sampling)
    pieces = list(gpt.stream(tones(0.4, seed), sampling))
    transcript, text, wav = joined(pieces)
    assert (transcript, text) == (whole.transcript, whole.text) and whole.text is not None
    np.testing.assert_allclose(wav, whole.wav, atol=1e-5)
    last = pieces[-1].answer
    assert last is not None
    assert (last.units, last.candidate, last.finished, last.turn) == (
        whole.units, whole.candidate, whole.finished, whole.turn,
    )  # fmt: skip
    assert (whole.candidate is not None) == (candidates > 1 and whole.finished)


def scripted(dialogue: Dialogue, text: str = TEXT, spoken: tuple[int, ...] = SPOKEN) -> list[int]:
    """A reply as a trained model writes it."""
    asked = Message("human", ((1, 2),))
    whole = dialogue.render(Conversation((asked, Message("assistant", ("heard", text, spoken)))))
    return whole.ids[len(dialogue.prompt([asked])) :]


def first_sound(dialogue: Dialogue, vocoder: UnitVocoder) -> tuple[int, int]:
    """How many tokens of a reply are drawn before its first sound, and how many it has; its pieces are checked."""
    ids, drawn = scripted(dialogue), list[int]()

    def steps() -> Iterator[list[int | None]]:
        for token in ids:
            drawn.append(token)
            yield [token]

    heard_at, pieces = 0, list[Piece]()
    reply = ReplyStream(dialogue, steps())
    for piece in reply.pieces(vocoder):
        heard_at = heard_at or (len(drawn) if piece.wav is not None else 0)
        pieces.append(piece)
    transcript, text, wav = joined(pieces)
    assert (transcript, text) == ("heard", TEXT) and reply.finish() == ids
    np.testing.assert_allclose(wav, vocoder.decode(Units(SPOKEN, None, vocoder.codebook)), atol=1e-5)
    return heard_at, len(ids)


@pytest.mark.parametrize("how", [InterleavedReplies(3, 5), InterleavedReplies(13, 26), InterleavedReplies(2, 40)])
def test_sound_comes_before_the_text_ends(gpt: SpeechGPT, how: InterleavedReplies) -> None:
    plain = Dialogue(gpt.dialogue.tokenizer)
    woven = Dialogue(gpt.dialogue.tokenizer, interleaving=how)
    heard_at, _ = first_sound(woven, gpt.vocoder)
    of_chain, _ = first_sound(plain, gpt.vocoder)
    lookahead = gpt.vocoder.network.context.right + gpt.vocoder.network.unit_context.right + 1
    stretches = -(-lookahead // how.units)  # before there is sound: a unit lasts a frame or longer
    marks = 4  # [ta], [ua], <sosp> and <eosp> of each
    assert heard_at <= begun(plain) + stretches * (how.text + how.units + marks)
    assert heard_at < of_chain and of_chain > begun(plain) + len(plain.encode_text(TEXT))


def begun(dialogue: Dialogue) -> int:
    """Tokens of the transcript."""
    return len(dialogue.encode_text("heard")) + len(dialogue.encode_text(";"))


def test_the_first_sound_waits_for_one_stretch_of_text_alone(gpt: SpeechGPT) -> None:
    woven = Dialogue(gpt.dialogue.tokenizer, interleaving=InterleavedReplies(3, 50))
    heard_at, whole = first_sound(woven, gpt.vocoder)
    units = heard_at - begun(woven) - len(["[ta]", 1, 2, 3, "[ua]", "<sosp>"])
    assert units % FIRST_UNITS == 0 and 0 < units <= 50 and heard_at < whole / 2
    assert first_sound(Dialogue(gpt.dialogue.tokenizer), gpt.vocoder)[0] > heard_at


def test_text_goes_on_behind_the_first_sound(gpt: SpeechGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = scripted(gpt.dialogue)
    monkeypatch.setattr(inference, "draws", lambda *_: iter([[token] for token in ids]))
    pieces = list(gpt.stream(tones(0.4), Sampling(candidates=1)))
    heard = [i for i, piece in enumerate(pieces) if piece.wav is not None]
    written = [i for i, piece in enumerate(pieces) if piece.text]
    assert heard[0] < written[-1] and len(heard) > 2
    answer = pieces[-1].answer
    assert answer is not None and (answer.transcript, answer.text, answer.units) == ("heard", TEXT, SPOKEN)


# --- cut off, history


def test_a_reply_that_is_cut_off_anywhere_is_an_answer(gpt: SpeechGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = scripted(gpt.dialogue)
    for end in range(1, 40):
        monkeypatch.setattr(inference, "draws", lambda *_, end=end: iter([[token] for token in ids[:end]]))
        monkeypatch.setattr(inference, "generate", lambda *_, end=end: [ids[:end]])
        for count in (1, 3):  # one that was cut off is not verified
            whole = gpt.answer(tones(0.4), Sampling(candidates=count))
            assert not whole.finished and whole.candidate is None
            pieces = list(gpt.stream(tones(0.4), Sampling(candidates=count)))
            wavs = [piece.wav for piece in pieces if piece.wav is not None]
            assert "".join(piece.text for piece in pieces) == (whole.text or "")
            assert (whole.wav is None) == (not wavs)
            assert not wavs or np.allclose(np.concatenate(wavs), whole.wav, atol=1e-5)


def test_history_has_interleaved_turns(gpt: SpeechGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = scripted(gpt.dialogue)
    monkeypatch.setattr(inference, "generate", lambda *_: [ids])
    first = gpt.answer(tones(0.4), Sampling(candidates=1))
    monkeypatch.undo()
    asked = Message("human", ((3,),))
    prompt = gpt.dialogue.prompt([*first.turn, asked])
    start = gpt.dialogue.prompt(first.turn[:1])
    assert prompt[: len(start) + len(ids)] == start + ids
    later = gpt.answer(tones(0.5, 1), Sampling(max_new_tokens=20), first.turn[:0])
    assert isinstance(later, Answer)


# --- self-verification


def test_a_candidate_says_the_same_text_again(gpt: SpeechGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(temperature=1.0, seed=1, max_new_tokens=150, candidates=3)
    heard: list[tuple] = []

    def understood(model, dialogue, spoken, texts) -> list[Candidate]:
        heard.extend(zip(spoken, texts))
        return [Candidate(units, len(heard) > 3) for units in spoken]

    monkeypatch.setattr(candidates, "verify", understood)
    text, first = "one two three", SPOKEN[:40]
    ids = scripted(gpt.dialogue, text, first)
    monkeypatch.setattr(inference, "generate", lambda *_: [ids])
    monkeypatch.setattr(inference, "draws", lambda *_: iter([[token] for token in ids]))
    asked = tones(0.4)
    never = gpt.answer(asked, sampling)
    assert [text for _, text in heard] == [text] * 3 and len({units for units, _ in heard}) == 3
    assert never.units == first and never.candidate == Candidate(first, False, 0)
    heard[:] = [((), "")]  # now the second further one is understood
    again = gpt.answer(asked, sampling)
    assert again.text == text and again.finished
    assert again.candidate is not None and again.units == again.candidate.units != first
    heard[:] = [((), "")] * 3
    pieces = list(gpt.stream(asked, sampling))
    assert joined(pieces)[1] == text and sum(piece.wav is not None for piece in pieces) == 1


def test_reading_aloud_is_not_interleaved(gpt: SpeechGPT, model_folder: Path) -> None:
    plain = alternating(SpeechGPT.from_pretrained(model_folder))
    sampling = Sampling(max_new_tokens=40, candidates=2)
    assert gpt.say("one two three", sampling).units == plain.say("one two three", sampling).units
    assert gpt.transcribe(tones(0.4), sampling) == plain.transcribe(tones(0.4), sampling)


# --- many at once, engines


def test_shared_and_remote_answers_are_those_given_alone(gpt: SpeechGPT, folder: Path) -> None:
    greedy = Sampling(max_new_tokens=60, candidates=2)
    questions = [tones(0.3 + 0.1 * i, i) for i in range(3)]
    wanted = [gpt.answer(question, greedy) for question in questions]

    def same(found: Answer, meant: Answer) -> bool:
        return (found.transcript, found.text, found.finished) == (meant.transcript, meant.text, meant.finished)

    batch = gpt.answer_batch(questions, greedy)
    assert all(map(same, batch, wanted))
    shared = streaming(alternating(SpeechGPT.from_pretrained(folder)))
    shared.share(4)
    assert [one.units for one in shared.answer_batch(questions, greedy)] == [one.units for one in batch]
    with completions_server(gpt.model) as server:
        remote = streaming(open_model(folder, "cpu", llm=server.url))  # type: ignore[arg-type]
        assert all(map(same, [remote.answer(question, greedy) for question in questions], wanted))


# --- facts


def test_the_facts_of_a_model_say_how_its_replies_are_written(
    gpt: SpeechGPT, model_folder: Path, tmp_path: Path
) -> None:
    assert gpt.dialogue.interleaving == InterleavedReplies(**HOW)
    assert SpeechGPT.from_pretrained(model_folder).dialogue.interleaving is None
    for i, (how, reason) in enumerate(
        [(None, None), ({"text": 0, "units": 2}, "at least 1"), ("13:26", "text and units"), (7, "text and units")]
    ):
        changed = woven_folder(model_folder, tmp_path / str(i), how)
        if reason is None:
            assert talkative(SpeechGPT.from_pretrained(changed)).dialogue.interleaving is None
            continue
        with pytest.raises(ValueError, match=f"{FILE}: .*{reason}"):
            SpeechGPT.from_pretrained(changed)
    with pytest.raises(ValueError, match="'published' has no interleave_replies"):
        SpeechGPT.from_pretrained(woven_folder(model_folder, tmp_path / "other", HOW, template="published"))
