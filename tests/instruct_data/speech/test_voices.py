"""TTS voices of every engine, who speaks what in a chat, and a stage-2 model that speaks in units."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import VitsConfig, VitsModel, VitsTokenizer

from instruct_data.build import sets as build
from instruct_data.build.config import UnitSource
from instruct_data.build.records import read_conversations
from instruct_data.speech import speak, unit_synthesis, unit_voice
from instruct_data.speech.speak import Line, SpeakConfig, chat_lines, speak_lines
from instruct_data.speech.unit_synthesis import SynthesizedUnits, UnitSynthesizer
from instruct_data.speech.unit_voice import UnitVoiceConfig, model_copies, texts_of
from instruct_data.speech.voices import VoiceError, open_voice, processes
from instruct_data.text.chats import TextChat, TextPair, chat_line
from instruct_data.text.reasons import TextReason
from speechgpt.answers import Candidate
from speechgpt.prompts import tts_prompt
from speechgpt.sampling import Sampling
from speechgpt.vocab import EOA
from units.audio import SAMPLE_RATE, load_wav
from units.corpus.manifest import read_manifest
from units.dataset.unit_set import UnitRecord, read_unit_set, shard_path, write_unit_set
from units.runtime.command import SOME_REFUSED


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random VITS of three speakers at 8 kHz."""
    folder = tmp_path_factory.mktemp("vits")
    words = {letter: i for i, letter in enumerate("_ abcdefghijklmnopqrstuvwxyz'")}
    (folder / "vocab.json").write_text(json.dumps(words))
    VitsTokenizer(
        str(folder / "vocab.json"), pad_token="_", unk_token="_", phonemize=False, language="eng"
    ).save_pretrained(folder)
    torch.manual_seed(4)
    config = VitsConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=16,
        flow_size=16,
        num_speakers=3,
        speaker_embedding_size=4,
        spectrogram_bins=17,
        upsample_initial_channel=16,
        upsample_rates=[8, 8],
        upsample_kernel_sizes=[16, 16],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        posterior_encoder_num_wavenet_layers=1,
        prior_encoder_num_flows=1,
        prior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=1,
        depth_separable_num_layers=1,
        duration_predictor_filter_channels=16,
        sampling_rate=8000,
    )
    VitsModel(config).save_pretrained(folder)
    return folder


# --- flite


def test_flite_speaks_a_text_the_same_way_each_time() -> None:
    """Flite draws noise from the C library; what was spoken before must not change it."""
    try:
        first = open_voice("flite:slt").speak("what is two")
    except VoiceError as error:
        pytest.skip(str(error))
    open_voice("flite:awb", stretch=1.1).speak("the dog walks")
    assert np.array_equal(open_voice("flite:slt").speak("what is two"), first)


# --- a transformers model


def test_a_transformers_model_speaks(vits: Path) -> None:
    voice = open_voice(f"transformers:{vits}#1")
    assert voice.name == f"transformers:{vits}#1"
    wav = voice.speak("what is two")
    assert wav.dtype == np.float32 and wav.ndim == 1 and len(wav) > 400
    np.testing.assert_array_equal(wav, voice.speak("what is two"))
    other = open_voice(f"transformers:{vits}#2").speak("what is two")
    assert len(other) != len(wav) or not np.array_equal(wav, other)


def test_a_model_that_cannot_speak_is_an_error(tmp_path: Path, vits: Path) -> None:
    for name, reason in (
        (f"transformers:{tmp_path}", TextReason.UNKNOWN_VOICE),
        (f"transformers:{vits}#7", TextReason.ENGINE_FAILED),
    ):
        with pytest.raises(VoiceError, match=re.escape(name.removeprefix("transformers:"))) as raised:
            open_voice(name).speak("what is two")
        assert raised.value.reason == reason
    with pytest.raises(VoiceError, match="transformers:FOLDER"):
        open_voice("whistle:loud")


def test_a_model_speaks_lines_and_failures_are_counted(vits: Path, tmp_path: Path) -> None:
    lines = [Line("a", "what is two", f"transformers:{vits}#0"), Line("b", "what is three", f"transformers:{vits}#9")]
    manifest = speak_lines(lines, tmp_path, "train", workers=1).manifest
    (kept,) = read_manifest(manifest)
    assert kept.id == "a" and len(load_wav(kept.audio)) > SAMPLE_RATE // 100
    assert json.loads((tmp_path / "train.refused.jsonl").read_text())["id"] == "b"


# --- who speaks what

CHATS = [
    TextChat((TextPair("who is ann", "a girl"), TextPair("and bob", "a boy"))),
    TextChat((TextPair("who is cid", "a boy"),)),
    TextChat((TextPair("who is dan", "a man"),)),
]


def test_question_voices_vary_and_a_chat_has_one_of_them() -> None:
    voices = ["espeak:en-us", "espeak:en-us+f2", "flite:awb"]
    lines = list(chat_lines(CHATS * 3, voices, "flite:slt", 1, seed=2))
    assert len({line.id for line in lines}) == len(lines)
    answers = [line for line in lines if line.voice == "flite:slt"]
    assert sorted(line.text for line in answers) == ["a boy", "a girl", "a man"] and not any(
        line.options for line in answers
    )
    asked = {line.text: line.voice for line in lines if line.voice != "flite:slt"}
    assert asked["who is ann"] == asked["and bob"]
    assert (
        len(
            {
                line.voice
                for chat in range(40)
                for line in chat_lines([TextChat((TextPair(str(chat), "x"),))], voices, "flite:slt", 1, 0)
            }
        )
        == 4
    )
    assert lines == list(chat_lines(CHATS, voices, "flite:slt", 1, seed=2))
    assert len(list(chat_lines(CHATS, voices, "flite:slt", 2, seed=2))) == 2 * 4 + 3


def test_the_answer_voice_is_no_question_voice() -> None:
    with pytest.raises(ValueError, match="'espeak:en-us' is the answer voice"):
        list(chat_lines(CHATS, ["flite:awb", "espeak:en-us"], "espeak:en-us", 1, seed=0))


def text_set(path: Path) -> Path:
    path.write_text("".join(map(chat_line, CHATS)))
    return path


def test_a_trial_speaks_the_first_chats_and_bad_lines_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vits: Path
) -> None:
    pairs, voices = tmp_path / "chats.jsonl", ([f"transformers:{vits}#0"], f"transformers:{vits}#1")
    pairs.write_text("no chat\n" + "".join(map(chat_line, CHATS)))
    assert speak.main(pairs, tmp_path / "out", *voices, SpeakConfig(most=1, workers=1)) == SOME_REFUSED
    first = read_manifest(tmp_path / "out" / "train.jsonl")
    assert {u.text for u in first} == {"who is ann", "a girl", "and bob", "a boy"}
    assert json.loads((tmp_path / "out" / "chats.refused.jsonl").read_text())["id"] == f"{pairs}:1"
    spoken = {u.id: u.audio.stat().st_mtime_ns for u in first}
    speak.main(pairs, tmp_path / "out", *voices, SpeakConfig(workers=1))
    after = {u.id: u.audio.stat().st_mtime_ns for u in read_manifest(tmp_path / "out" / "train.jsonl")}
    assert len(after) == 7 and spoken.items() <= after.items()


def test_a_gpu_holds_a_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert processes(["flite:slt", "transformers:some/model"]) == 1
    assert processes(["flite:slt"]) == (os.cpu_count() or 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert processes(["transformers:some/model"]) == (os.cpu_count() or 1)


@pytest.mark.slow
def test_a_text_set_is_spoken_and_built_into_a_chain(tmp_path: Path, mfcc_encoder) -> None:
    from units.dataset.shards import extract

    pairs = text_set(tmp_path / "chats.jsonl")
    speak.main(
        pairs, tmp_path / "corpus", ["espeak:en-us", "espeak:en-us+f2"], "espeak:en-us+f5", SpeakConfig(workers=2)
    )
    utterances = read_manifest(tmp_path / "corpus" / "train.jsonl")
    assert len(utterances) == 7
    written = {u.audio: u.audio.stat().st_mtime_ns for u in utterances}
    speak.main(
        pairs, tmp_path / "corpus", ["espeak:en-us", "espeak:en-us+f2"], "espeak:en-us+f5", SpeakConfig(workers=2)
    )
    assert written == {u.audio: u.audio.stat().st_mtime_ns for u in utterances}
    extract(utterances, tmp_path / "units", mfcc_encoder)
    build.main(tmp_path / "units", pairs, "espeak:en-us+f5", tmp_path / "out")
    chain = list(read_conversations(tmp_path / "out" / "chain.jsonl.gz"))
    assert sorted(len(c.messages) // 2 for c in chain) == [1, 1, 1, 2]  # "and bob" needs the turn before it


# --- the stage-2 model


def test_the_model_speaks_in_units(widened: Path) -> None:
    voice = UnitSynthesizer(widened, sampling=Sampling(temperature=1.0, max_new_tokens=40, seed=1))
    spoken = voice.speak(["what is two", "say it", "word " * 400])
    assert [one.text[:4] for one in spoken] == ["what", "say ", "word"]
    assert spoken[2].ids is None and spoken[2].reason == TextReason.LONGER_THAN_CONTEXT
    for one in spoken[:2]:
        assert (one.ids is None) == bool(one.reason)
        assert one.ids is None or (one.ids and max(one.ids) < voice.gpt.codebook.size)


def test_the_model_verifies_the_units_it_speaks(widened: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[tuple[list[str], list[tuple[int, ...]], int]] = []

    def replies(model, dialogue, prompts, form, sampling) -> list[list[int]]:
        end = [dialogue.vocab.special_id(EOA)]
        whole, endless = dialogue.vocab.encode((1, 2)) + end, dialogue.vocab.encode((3,))
        return [whole, endless][: len(prompts)]

    def again(model, dialogue, prompts, texts, first, sampling) -> list[Candidate]:
        assert [dialogue.prompt([tts_prompt(text)]) for text in texts] == prompts
        verified.append((texts, first, sampling.candidates))
        return [Candidate((5,), True, 1) for _ in texts]

    monkeypatch.setattr(unit_synthesis, "generate", replies)
    monkeypatch.setattr(unit_synthesis, "choose_candidates", again)
    spoken = UnitSynthesizer(widened, sampling=Sampling(candidates=2)).speak(["what is two", "say it"])
    assert verified == [(["what is two"], [(1, 2)], 2)]
    assert [one.ids for one in spoken] == [(5,), None] and spoken[1].reason == TextReason.NO_END
    assert (
        UnitSynthesizer(widened, sampling=Sampling(candidates=1)).speak(["what is two"])[0].ids == (1, 2)
        and len(verified) == 1
    )


def test_texts_are_spoken_once() -> None:
    assert list(texts_of(CHATS, "answers")) == ["a girl", "a boy", "a man"]
    assert list(texts_of(CHATS, "both"))[:3] == ["who is ann", "a girl", "and bob"]
    assert len(list(texts_of(CHATS, "questions"))) == 4
    with pytest.raises(ValueError, match="said is 'songs'"):
        list(texts_of(CHATS, "songs"))
    with pytest.raises(ValueError, match="--batch is 0"):
        UnitVoiceConfig(batch=0)
    with pytest.raises(ValueError, match="--voices-a-question is 0"):
        SpeakConfig(voices_a_question=0)


def test_a_large_model_is_not_copied_for_each_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_voice, "own_cores", lambda beside: 64 // beside)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name])
    (tmp_path / "model.safetensors").write_bytes(bytes(200_000))
    assert model_copies(tmp_path, "cpu", 1) == 4096 * 1000 // 2 // 400_000 == 5
    assert model_copies(tmp_path, "cpu", 2) == 2 and model_copies(tmp_path, "cuda", 1) == 1
    (tmp_path / "model.safetensors").write_bytes(bytes(2_000_000))
    assert model_copies(tmp_path, "cpu", 1) == 1


def test_a_spoken_unit_set_resumes_and_feeds_the_chain(
    widened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, out = text_set(tmp_path / "chats.jsonl"), tmp_path / "units"
    settings = {
        "shard_size": 1,
        "batch": 2,
        "sampling": Sampling(temperature=1.0, max_new_tokens=60, seed=1),
        "speaker": "model",
        "workers": 1,
    }

    def speaks(voice: UnitSynthesizer, texts: list[str]) -> list[SynthesizedUnits]:
        said = [(len(text) % 12, 1) for text in texts]
        return [
            SynthesizedUnits(t, None, TextReason.NO_UNITS) if t == "a man" else SynthesizedUnits(t, ids)
            for t, ids in zip(texts, said)
        ]

    monkeypatch.setattr(UnitSynthesizer, "speak", speaks)  # an untrained model hardly ever ends its reply
    assert unit_voice.main(pairs, out, widened, UnitVoiceConfig(**settings)) == SOME_REFUSED
    made = read_unit_set(out)
    assert (len(made), made.refused, made.shards) == (2, 1, 3)
    assert [(r.text, r.speaker, r.units.ids, r.units.durations) for r in made] == [
        ("a girl", "model", (6, 1), None),
        ("a boy", "model", (5, 1), None),
    ]
    row = json.loads((out / "refused.jsonl").read_text())
    assert (row["reason"], row["detail"]) == (TextReason.NO_UNITS.value, "a man")
    pairs.write_text("".join(map(chat_line, CHATS)) + "no chat\n")
    for rank in (1, 0):
        assert not (tmp_path / "shared" / "unit_set.json").exists()
        unit_voice.main(pairs, tmp_path / "shared", widened, UnitVoiceConfig(**settings, rank=rank, world=2))
    shared = read_unit_set(tmp_path / "shared")
    assert list(shared) == list(made) and shared.refused == 2
    refused = [json.loads(line) for line in (tmp_path / "shared" / "refused.jsonl").read_text().splitlines()]
    assert [row["id"].rpartition(":")[2] for row in refused][0] == "4"
    with pytest.raises(ValueError, match="rank is 2 .*0 to 1"):
        unit_voice.main(pairs, out, widened, UnitVoiceConfig(**settings, rank=2, world=2))
    shard_path(out, 1).unlink()
    plan = (out / "plan.json").read_text()  # release 0.1.0 called candidates takes
    (out / "plan.json").write_text(plan.replace("candidates=", "takes="))
    kept = shard_path(out, 0).stat().st_mtime_ns
    unit_voice.main(pairs, out, widened, UnitVoiceConfig(**settings))
    assert [r.text for r in read_unit_set(out)] == ["a girl", "a boy"] and shard_path(out, 0).stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="begun with other texts"):
        unit_voice.main(pairs, out, widened, UnitVoiceConfig(said="both", **settings))

    asked = [
        UnitRecord(f"q{i}", made_units, 1600, chat.turns[0].question, "espeak:en-us")
        for i, (chat, made_units) in enumerate(zip(CHATS, [r.units for r in made] * 2))
    ]
    write_unit_set(tmp_path / "asked", asked, made.codebook)
    build.main([UnitSource(tmp_path / "asked"), UnitSource(out)], pairs, "model", tmp_path / "sets")
    chain = list(read_conversations(tmp_path / "sets" / "chain.jsonl.gz"))
    assert [c.messages[1].parts for c in chain] == [("who is ann", "a girl", (6, 1)), ("who is cid", "a boy", (5, 1))]
