"""SpeechGPT: a stream equals the answer, history counts, cut-off replies are marked, errors of opening."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_parts import talkative, tiny_vocoder, tones

from speechgpt.answers import Answer, Candidate, Piece
from speechgpt.dialogue import Message
from speechgpt.generation.stream import ReplyStream
from speechgpt.inference import SpeechGPT
from speechgpt.sampling import Sampling
from units.audio import HOP
from units.codebook import Units
from units.runtime.hub import local_folder
from units.vocoder.heads.configs import VocosConfig
from units.vocoder.unit_vocoder import UnitVocoder

CHANCE = Sampling(temperature=1.0, seed=3, max_new_tokens=250, candidates=1)


def opened(folder: Path, endless: bool = False) -> SpeechGPT:
    return talkative(SpeechGPT.from_pretrained(folder), endless)


@pytest.fixture(scope="module")
def gpt(model_folder: Path) -> SpeechGPT:
    return opened(model_folder)


@pytest.fixture(scope="module")
def waves(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SpeechGPT:
    """The same with a vocoder that makes sound while units are still being drawn."""
    return with_waves(opened(model_folder))


def with_waves(gpt: SpeechGPT) -> SpeechGPT:
    torch.manual_seed(5)
    gpt.vocoder = UnitVocoder(gpt.codebook, VocosConfig(width=16, blocks=1, embedding_dim=8, duration_width=8)).eval()
    return gpt


# --- streams


def joined(pieces: list[Piece]) -> tuple[str, str, np.ndarray]:
    wavs = [piece.wav for piece in pieces if piece.wav is not None]
    return "".join(p.transcript for p in pieces), "".join(p.text for p in pieces), np.concatenate(wavs)


@pytest.mark.parametrize("opened_model", ["gpt", "waves"])
@pytest.mark.parametrize("candidates", [1, 2])
@pytest.mark.parametrize("seed", [3, 4, 5])
def test_joined_pieces_equal_the_answer(
    request: pytest.FixtureRequest, opened_model: str, candidates: int, seed: int
) -> None:
    model = request.getfixturevalue(opened_model)
    sampling = Sampling(temperature=1.0, seed=seed, max_new_tokens=250, candidates=candidates)
    whole = model.answer(tones(0.4), sampling)
    pieces = list(model.stream(tones(0.4), sampling))
    transcript, text, wav = joined(pieces)
    assert (transcript, text) == (whole.transcript, whole.text)
    np.testing.assert_allclose(wav, whole.wav, atol=1e-5)
    assert [piece.answer for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    last = pieces[-1].answer
    assert (last.units, last.candidate, last.finished, last.turn) == (
        whole.units,
        whole.candidate,
        whole.finished,
        whole.turn,
    )
    np.testing.assert_array_equal(last.wav, wav)


def test_sound_comes_before_the_last_unit(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, drawn = with_waves(opened(model_folder, endless=True)), []
    kept = ReplyStream._kept

    def counted(self, steps):
        for token in kept(self, steps):
            drawn.append(token)
            yield token

    monkeypatch.setattr(ReplyStream, "_kept", counted)
    heard_at = []
    for piece in model.stream(tones(0.4), CHANCE):
        heard_at += [len(drawn)] if piece.wav is not None else []
    assert len(heard_at) > 2
    assert heard_at[0] < len(drawn) / 2


def test_a_letter_of_several_tokens_is_streamed_whole(gpt: SpeechGPT) -> None:
    text = "né 😀 été"
    ids = gpt.dialogue.encode_text(text)
    assert len(ids) > len(text)  # the tiny tokenizer has these letters as bytes
    reply = ReplyStream(gpt.dialogue, iter([[token] for token in ids]))
    pieces = [piece.transcript for piece in reply.pieces(None)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text
    assert reply.finish() == ids


def test_a_reply_cut_off_before_its_speech_has_no_sound(gpt: SpeechGPT) -> None:
    pieces = list(gpt.stream(tones(0.4), Sampling(max_new_tokens=2, candidates=1)))
    assert all(piece.wav is None for piece in pieces)
    assert pieces[-1].answer.finished is False


# --- answers


def test_an_answer_reports_whether_it_is_finished(gpt: SpeechGPT, model_folder: Path, monkeypatch) -> None:
    whole = gpt.answer(tones(0.4), CHANCE)
    assert whole.finished and len(whole.wav) >= len(whole.units) * HOP
    gpt = opened(model_folder, endless=True)
    [said] = gpt.say_batch(["hello"], Sampling(max_new_tokens=5, candidates=1))
    assert not said.finished and len(said.units) == 4  # behind <sosp>
    from speechgpt import inference

    monkeypatch.setattr(inference, "choose_candidates", lambda *args: [Candidate((1, 2), True, 1)])
    [again] = gpt.say_batch(["hello"], Sampling(max_new_tokens=5))
    assert again.finished and again.units == (1, 2)  # a further candidate is complete


def test_history_changes_the_answer(gpt: SpeechGPT) -> None:
    first = gpt.answer(tones(0.4), CHANCE)
    assert [message.role for message in first.turn] == ["human", "assistant"]
    assert first.turn[1].parts == (first.transcript, first.text, first.units)
    asked = Message("human", ("and why",))
    assert gpt._prompt(asked, first.turn) == gpt.dialogue.prompt([*first.turn, asked])
    alone, later = (gpt.chat("and why", CHANCE, history) for history in ((), first.turn))
    assert alone == gpt.chat_batch(["and why"], CHANCE)[0]
    assert later != alone
    again = gpt.answer(tones(0.4), CHANCE, first.turn)
    assert (again.transcript, again.text) != (first.transcript, first.text)
    [*_, last] = gpt.stream(tones(0.4), CHANCE, first.turn)
    assert last.answer.turn == again.turn


def test_the_oldest_turns_are_dropped(gpt: SpeechGPT) -> None:
    def turn(word: str) -> tuple[Message, Message]:
        return Message("human", (word,)), Message("assistant", ((1, 2) * 15,))

    old, middle, new = turn("old"), turn("middle"), turn("new")
    asked = Message("human", ("and why",))
    assert gpt.model.config.max_position_embeddings == 256
    assert gpt._prompt(asked, [*old, *middle, *new]) == gpt.dialogue.prompt([*middle, *new, asked])
    long = Message("human", ("x" * 200,))  # by itself more than half of the context: it is asked alone
    assert gpt._prompt(long, [*old, *new]) == gpt.dialogue.prompt([long])


# --- opening


def test_bfloat16_weights_open_in_a_dtype_that_is_not_emulated(model_folder: Path, tmp_path: Path, monkeypatch) -> None:
    from transformers import AutoModelForCausalLM

    copy = shutil.copytree(model_folder, tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(copy).bfloat16().save_pretrained(copy)
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("speechgpt.inference.multiplies_bfloat16", lambda device, has=has: has)
        assert SpeechGPT.from_pretrained(copy).model.dtype == expected
        assert SpeechGPT.from_pretrained(copy, dtype="bfloat16").model.dtype == torch.bfloat16
    answer = SpeechGPT.from_pretrained(copy, dtype="bfloat16").answer(tones(0.4), Sampling(max_new_tokens=20))
    assert isinstance(answer, Answer) and not answer.finished


def test_errors_of_opening_name_the_cause(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no device 'gpu' here"):
        SpeechGPT.from_pretrained(model_folder, device="gpu")
    with pytest.raises(ValueError, match="dtype"):
        SpeechGPT.from_pretrained(model_folder, dtype="float12")
    copy = shutil.copytree(model_folder, tmp_path / "model")
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match="are damaged"):
        SpeechGPT.from_pretrained(copy)


def test_a_model_is_fetched_from_the_hub(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: asked.append(name) or str(model_folder))
    assert SpeechGPT.from_pretrained("anna/talks").folder == model_folder
    assert asked == ["anna/talks"]

    def unknown(name: str) -> str:
        raise OSError("no such repository")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unknown)
    with pytest.raises(FileNotFoundError, match="anna/sings.* hub .*no such repository"):
        local_folder("anna/sings")
    assert local_folder("/nowhere/anna/sings") == Path("/nowhere/anna/sings")  # no hub name


def test_a_vocoder_of_another_codebook_is_refused_before_anything_is_drawn(
    gpt, hubert_encoder, model_folder, tmp_path
) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "model")
    tiny_vocoder(hubert_encoder).save_pretrained(copy / "vocoder")
    other = SpeechGPT.from_pretrained(copy)
    other.model = None  # it would fail
    with pytest.raises(ValueError, match="its vocoder speaks the codebook"):
        next(other.stream(tones(0.4)))


# --- voices


def test_a_model_speaks_in_each_of_its_voices(model_folder: Path) -> None:
    gpt = opened(model_folder)
    assert gpt.voices == ()
    settings = VocosConfig(width=16, blocks=1, embedding_dim=8, duration_width=8, num_speakers=2)
    for names, shown in (((), ("0", "1")), (("anna", "ben"), ("anna", "ben"))):
        torch.manual_seed(5)
        gpt.vocoder = UnitVocoder(gpt.codebook, settings, names).eval()
        assert gpt.voices == shown
        other = gpt.in_voice(shown[1])
        first, second = gpt.answer(tones(0.5), CHANCE), other.answer(tones(0.5), CHANCE)
        assert first.units == second.units and not np.array_equal(first.wav, second.wav)
        assert np.array_equal(second.wav, gpt.vocoder.decode(Units(second.units, None, gpt.codebook), speaker=1))
        streamed = joined(list(other.stream(tones(0.5), CHANCE)))[2]
        assert np.allclose(streamed, second.wav, atol=1e-5)
    with pytest.raises(ValueError, match="anna, ben"):
        gpt.in_voice("carl")
