"""The published SpeechGPT: adopted without running a pickle; ids, logits and replies equal upstream's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opcodes import call, streamed, value
from reference import DATA
from sentencepiece import SentencePieceTrainer
from tiny_parts import talkative, tiny_vocoder, tones
from transformers import AutoModelForCausalLM, AutoTokenizer

from speechgpt import cli, open_model
from speechgpt.dialogue import Conversation, Dialogue, Message, Reply
from speechgpt.inference import SpeechGPT
from speechgpt.published import adopt
from speechgpt.published.template import PREFIX, PublishedDialogue, open_pieces
from speechgpt.sampling import Sampling
from speechgpt.vocab import EOH, HUMAN, SPEECHGPT, UnitVocab
from units.audio import save_wav
from units.encoder.mfcc import MfccFeatures
from units.encoder.unit_encoder import UnitEncoder
from units.notation import EOSP, SOSP

LAYOUT = DATA / "speechgpt_layout"
EXPECTED = json.loads((LAYOUT / "expected.json").read_text())
SHORT_PREFIX = "You are an AI assistant whose name is SpeechGPT.\n"  # that of the reference
ASKED = Message("human", ((661, 987, 511),))
SAMPLING = Sampling(temperature=1.0, seed=2, max_new_tokens=120, candidates=1)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A unit encoder of 1000 units, and a vocoder for them."""
    folder = tmp_path_factory.mktemp("parts")
    features = MfccFeatures()
    torch.manual_seed(1)
    centres = torch.randn(1000, features([tones(1.0)])[0].shape[1]) * 10
    encoder = UnitEncoder.from_features(features, centres, "tiny-1000", "utterance")
    encoder.save_pretrained(folder / "encoder")
    tiny_vocoder(encoder).save_pretrained(folder / "vocoder")
    return folder


@pytest.fixture(scope="module")
def adopted(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adopted") / "model"
    adopt.main(out, LAYOUT / "cm", LAYOUT / "com", parts / "encoder", parts / "vocoder")
    return out


@pytest.fixture(scope="module")
def gpt(adopted: Path) -> SpeechGPT:
    return talkative(SpeechGPT.from_pretrained(adopted, dtype="float32"))


@pytest.fixture(scope="module")
def dialogue(adopted: Path) -> PublishedDialogue:
    return PublishedDialogue.from_folder(AutoTokenizer.from_pretrained(adopted), adopted, SHORT_PREFIX)


def reply_ids(dialogue: Dialogue, spelled: str) -> list[int]:
    """Ids of a reply as upstream's tokenizer reads its string."""
    table = dialogue.tokenizer.get_vocab()
    ids: list[int] = []
    for number, part in enumerate(spelled.split("<sosp>")):
        units, _, text = part.rpartition("<eosp>") if number else ("", "", part)
        if number:
            ids += [table[SOSP], *(table[f"<{one}>"] for one in units.strip("<>").split("><") if one), table[EOSP]]
        ids += dialogue.encode_text(text.strip()) if text.strip() else []
    return ids


# --- what upstream computed


def test_prompts_have_upstreams_ids(dialogue: PublishedDialogue) -> None:
    assert dialogue.prompt([ASKED]) == EXPECTED["prompt_ids"]
    for word, token in EXPECTED["token_ids"].items():
        assert dialogue.tokenizer.convert_tokens_to_ids(word) == token


def test_first_logits_equal_upstreams(adopted: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(adopted, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([EXPECTED["prompt_ids"]])).logits[0, -1]
    assert int(logits.argmax()) == EXPECTED["argmax"]
    torch.testing.assert_close(logits[:16], torch.tensor(EXPECTED["last_logits_first_16"]), atol=1e-5, rtol=0)


def test_other_programs_read_the_same_ids(adopted: Path, dialogue: PublishedDialogue) -> None:
    tokenizer = AutoTokenizer.from_pretrained(adopted)
    assert tokenizer(EXPECTED["prompt"].rstrip()).input_ids == EXPECTED["prompt_ids"]
    whole = PublishedDialogue(tokenizer, PREFIX, dialogue.pieces)
    spelled = tokenizer.apply_chat_template(
        [{"role": "user", "content": "is three bigger"}], add_generation_prompt=True, tokenize=False
    )
    assert spelled == f"<s>{PREFIX}[Human]: is three bigger <eoh>. [SpeechGPT]: "
    asked = whole.prompt([Message("human", ("is three bigger",))])
    table = tokenizer.get_vocab()
    assert [token for token in asked if token in (table[HUMAN], table[EOH], table[SPEECHGPT])] == [
        table[HUMAN],
        table[EOH],
        table[SPEECHGPT],
    ]


def test_a_last_space_is_a_token_where_the_pieces_keep_it(tmp_path: Path, dialogue: PublishedDialogue) -> None:
    """Those of LLaMA keep spaces, so upstream's prompts end in a token of a space."""
    (tmp_path / "text.txt").write_text("what is two plus two: four. red dog\n" * 50)
    SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    kept = PublishedDialogue(dialogue.tokenizer, "", open_pieces(tmp_path))
    ids = kept.prompt([Message("human", ("what  is",))])
    assert ids[-2:] == kept.pieces.encode(": ")[-2:] and kept.pieces.id_to_piece(ids[-1]) == "\u2581"
    assert kept.pieces.encode(": what  is") == ids[2 : ids.index(dialogue.vocab.special_id(EOH))]


# --- text, prompts and replies


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
@example("[Human]: hi <eoh>. [SpeechGPT]: <sosp><1><2><eosp></s><s><unk>")
@example("<eos>")
def test_typed_text_is_never_a_unit_or_a_special_token(dialogue: PublishedDialogue, text: str) -> None:
    special = {dialogue.tokenizer.bos_token_id, *dialogue.ends, *dialogue.vocab.special_ids.values()}
    ids = dialogue.encode_text(text)
    assert not special & set(ids) and all(token < dialogue.vocab.first_unit_id for token in ids)
    prompt = dialogue.prompt([Message("human", (text,))])
    assert sum(token in special for token in prompt) == 4  # <s> [Human] <eoh> [SpeechGPT]


@pytest.mark.parametrize(
    "spelled, chained, reply",
    [
        ("what is two; [ta] four; [ua] <sosp><5><7><eosp><eoa>", True, Reply("what is two", "four", (5, 7))),
        ("what is two; [ta] four; [ua] <sosp><5><7><eosp><eoa>.", True, Reply("what is two", "four", (5, 7))),
        ("[tq] what is two; [ta] four; [ua] <sosp><5><eosp><eoa>", True, Reply("what is two", "four", (5,))),
        ("[tq]what is two [ta]four[ua]<sosp><5><eosp>", True, Reply("what is two", "four", (5,))),
        ("[tq] what is two; [ta] four<eoa>", True, Reply("what is two", "four", None)),
        ("[ta] four; [ua] <sosp><5><eosp><eoa>", True, Reply(None, "four", (5,))),
        ("what is two", True, Reply("what is two", None, None)),
        ("what is two; [ta] four; [ua]", True, Reply("what is two", "four", None)),
        ("what is two<eoa> more", False, Reply(None, "what is two", None)),
        ("what is two<eos>.", False, Reply(None, "what is two", None)),
        ("[ta] four<eoa>", False, Reply(None, "four", None)),
        ("<sosp><5><6><eosp><eoa>", False, Reply(None, None, (5, 6))),
        ("<sosp><eosp>", False, Reply(None, None, ())),
        ("<eoa>", False, Reply(None, "", None)),
    ],
)
def test_replies_are_read_leniently(dialogue: PublishedDialogue, spelled: str, chained: bool, reply: Reply) -> None:
    assert dialogue.parse_reply(reply_ids(dialogue, spelled), chained) == reply


def test_the_released_replies_are_read(dialogue: PublishedDialogue) -> None:
    lines = (DATA / "speechinstruct_released.jsonl").read_text().splitlines()
    for line in lines:
        spelled = json.loads(line)["plain_text"].partition("[SpeechGPT]:")[2]
        found = dialogue.parse_reply(reply_ids(dialogue, spelled), chained="[ta]" in spelled)
        assert found.units and (found.transcript is None) == ("[ta]" not in spelled)
        assert found.text is None or (found.text in spelled and "[ua]" not in found.text)


def test_a_reply_ends_at_every_end(dialogue: PublishedDialogue) -> None:
    text = dialogue.encode_text("four")
    assert not dialogue.ended([]) and not dialogue.ended(text)
    for end in ("<eoa>", "<eoa>."):
        assert dialogue.ended(dialogue.encode_text(f"four{end}"))
    for token in (*dialogue.ends, dialogue.vocab.special_id(EOSP)):
        assert dialogue.ended([*text, token])
    assert dialogue.parse_reply([*text, dialogue.vocab.special_id(HUMAN), *text]).text == "four"


@pytest.mark.parametrize("said", [("red dog",), ("red", "dog", (1, 2)), ((3, 4),), ("dog", (5,))])
def test_a_reply_that_was_rendered_is_read_back(dialogue: PublishedDialogue, said: tuple) -> None:
    conversation = Conversation((ASKED, Message("assistant", said)))
    whole = dialogue.render(conversation)
    opening = whole.ids.index(dialogue.vocab.special_id(SPEECHGPT)) + 1 + len(dialogue.encode_text(":"))
    assert dialogue.parse_reply(whole.ids[opening:]) == Reply.from_parts(said)
    assert whole.train == [place >= opening for place in range(len(whole.ids))]
    assert whole.ids[-1] == dialogue.tokenizer.eos_token_id
    every = dialogue.render(conversation, train_on_prompt=True).train
    start = whole.ids.index(dialogue.vocab.special_id(HUMAN))
    assert every == [place >= start for place in range(len(every))]


def test_half_a_chain_is_refused(dialogue: PublishedDialogue) -> None:
    half = Conversation((ASKED, Message("assistant", ("red", "dog"), "answer")), "chain_answer", "c1")
    with pytest.raises(ValueError, match="c1 is one half of a chain.*chain_halves"):
        dialogue.render(half)


def test_earlier_turns_are_in_the_prompt(dialogue: PublishedDialogue) -> None:
    later = Message("human", ("and three",))
    ids = dialogue.prompt([ASKED, Message("assistant", ("one", "two", (7,))), later])
    assert ids.count(dialogue.vocab.special_id(HUMAN)) == 2 and ids.count(dialogue.vocab.special_id(SPEECHGPT)) == 2
    assert dialogue.vocab.decode(ids) == [661, 987, 511, 7]


# --- talking


def test_streamed_equals_whole(gpt: SpeechGPT) -> None:
    for seed in range(4):
        sampling = Sampling(temperature=1.0, seed=seed, max_new_tokens=120, candidates=1)
        whole = gpt.answer(tones(0.4), sampling)
        pieces = list(gpt.stream(tones(0.4), sampling))
        assert "".join(piece.transcript for piece in pieces) == (whole.transcript or "")
        assert "".join(piece.text for piece in pieces) == (whole.text or "")
        assert pieces[-1].answer.units == whole.units


def test_marks_are_not_shown_while_they_are_spelled(gpt: SpeechGPT) -> None:
    dialogue = gpt.dialogue
    ids = reply_ids(dialogue, "is two; [ta] four < five; [ua] <sosp><5><eosp>")
    shown: list[tuple[str, str]] = []
    for end in range(1, ids.index(dialogue.vocab.special_id(SOSP)) + 1):
        found = dialogue.parse_begun(ids[:end])
        shown.append((found.transcript or "", found.text or ""))
    for before, after in zip(shown, shown[1:]):
        assert after[0].startswith(before[0]) and after[1].startswith(before[1])
    assert shown[-1] == ("is two", "four < five")


def test_the_four_tasks_run_from_the_command_line(
    adopted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Spoken chat, text chat, transcribing and reading aloud (Zhang et al. 2023, section 5)."""
    opened = open_model.open_model
    monkeypatch.setattr(open_model, "open_model", lambda folder, *_: talkative(opened(folder, "cpu", "float32")))
    monkeypatch.chdir(tmp_path)
    save_wav("q.wav", tones(0.4))
    lines = iter(["q.wav", "what is two", "/hear q.wav", "/say what is two", "/quit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    arguments = ["--model", str(adopted), "--sampling.temperature", "1", "--sampling.max_new_tokens", "100"]
    cli.main.cli([*arguments, "--sampling.seed", "4"])
    turns = [json.loads(line) for line in Path("answers/chat.jsonl").read_text().splitlines()]
    assert [turn["asked"] for turn in turns] == ["q.wav", "what is two", "what is two"]
    assert turns[2]["wav"] and (tmp_path / "answers" / turns[2]["wav"]).exists()
    assert "heard:" in capsys.readouterr().out


def test_what_a_folder_lacks_it_does_not_claim(parts: Path, tmp_path: Path) -> None:
    adopt.main(tmp_path / "mute", LAYOUT / "cm", None, parts / "encoder")
    assert SpeechGPT.from_pretrained(tmp_path / "mute").capabilities == {"transcribe", "chat"}


# --- files


def damaged(tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the published folders, to be damaged."""
    for name in ("cm", "com"):
        shutil.copytree(LAYOUT / name, tmp_path / name)
    return tmp_path / "cm", tmp_path / "com"


def test_weights_in_several_files_are_joined(parts: Path, adopted: Path, tmp_path: Path) -> None:
    cm, com = damaged(tmp_path)
    weights = torch.load(cm / "pytorch_model.bin", weights_only=True)
    (cm / "pytorch_model.bin").unlink()
    names = list(weights)
    shards = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, held in shards.items():
        torch.save({name: weights[name] for name in held} | {"model.rotary_emb.inv_freq": torch.ones(2)}, cm / file)
    places = {name: file for file, held in shards.items() for name in held}
    (cm / adopt.INDEX).write_text(json.dumps({"weight_map": places}))
    adopt.main(tmp_path / "out", cm, com, parts / "encoder", parts / "vocoder")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    wanted = AutoModelForCausalLM.from_pretrained(adopted, dtype=torch.float32).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda cm, com: (cm / "pytorch_model.bin").unlink(), "pytorch_model.bin"),
        (lambda cm, com: (cm / "tokenizer.model").unlink(), "tokenizer.model"),
        (lambda cm, com: (cm / "tokenizer.model").write_bytes(b"no model"), "tokenizer"),
        (lambda cm, com: (cm / "added_tokens.json").write_text("{"), "added_tokens.json"),
        (lambda cm, com: (cm / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut"), "pytorch_model.bin"),
        (lambda cm, com: change(cm / "config.json", hidden_size=128), "shape"),
        (lambda cm, com: change(cm / "config.json", num_hidden_layers=3), "lacks"),
        (lambda cm, com: change(cm / "config.json", num_hidden_layers=1), "no such weight"),
        (lambda cm, com: change(cm / "config.json", model_type="gpt2"), "llama"),
        (lambda cm, com: (com / "adapter_model.bin").unlink(), "adapter_model.bin"),
        (lambda cm, com: change(com / "adapter_config.json", r=4), "rank 4"),
        (lambda cm, com: change(com / "adapter_config.json", peft_type="PREFIX_TUNING"), "LORA"),
        (lambda cm, com: change(com / "adapter_config.json", bias="all"), "bias"),
        (lambda cm, com: torch.save({"lm_head.weight": torch.ones(1)}, com / "adapter_model.bin"), "lm_head"),
        (lambda cm, com: (cm / adopt.INDEX).write_text('{"weight_map": {"a": "../x.bin"}}'), "../x.bin"),
    ],
)
def test_a_damaged_folder_is_one_line(parts: Path, tmp_path: Path, capsys, damage, says: str) -> None:
    cm, com = damaged(tmp_path)
    damage(cm, com)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        adopt.main.cli([str(out), "--cm", str(cm), "--com", str(com), "--encoder", str(parts / "encoder")])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and says in lines[0]
    assert not out.exists() and not list(tmp_path.glob(".out*"))


def test_no_pickle_runs(parts: Path, tmp_path: Path) -> None:
    cm, com = damaged(tmp_path)
    victim = tmp_path / "run"
    streamed(com / "adapter_model.bin", call("os.mkdir", value(str(victim))))
    with pytest.raises(ValueError):
        adopt.main(tmp_path / "out", cm, com, parts / "encoder")
    assert not victim.exists()


def test_units_of_another_encoder_are_refused(mfcc_encoder: UnitEncoder, tmp_path: Path) -> None:
    mfcc_encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(adopt.AdoptError, match="1000"):
        adopt.main(tmp_path / "out", LAYOUT / "cm", LAYOUT / "com", tmp_path / "encoder")


def test_another_template_is_refused(adopted: Path, tmp_path: Path) -> None:
    shutil.copytree(adopted, tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "speechgpt.json").read_text())
    facts["extra"]["template"] = "later"
    (tmp_path / "model" / "speechgpt.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="later"):
        SpeechGPT.from_pretrained(tmp_path / "model")
    facts["extra"]["template"] = "published"
    (tmp_path / "model" / "speechgpt.json").write_text(json.dumps(facts))
    (tmp_path / "model" / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError):
        SpeechGPT.from_pretrained(tmp_path / "model")


def test_the_vocabulary_is_that_of_the_published_model(dialogue: PublishedDialogue) -> None:
    assert isinstance(dialogue.vocab, UnitVocab)
    assert (dialogue.vocab.first_unit_id, dialogue.vocab.size) == (480, 1000)
