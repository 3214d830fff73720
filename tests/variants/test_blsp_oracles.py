"""Equality with the published BLSP code, on tiny random weights: ids, states, logits, losses, gradients, replies."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from blsp_oracles import FOLDER, NAMES, SOUNDS, WAVS, Oracle, inputs, open_oracle
from torch.nn import functional

from speechgpt.dialogue import Message, Speech
from speechgpt.sampling import Sampling
from stages.counted import counted_logits
from units.encoder.published.checkpoint_files import read_torch
from variants.blsp import generate
from variants.blsp.inference import BLSP, Request
from variants.blsp.stages.opened import divergence
from variants.blsp.upstream import export
from variants.listening import Row, Tokens, ends_of, padded, replies, row

GREEDY = Sampling(max_new_tokens=20)


@pytest.fixture(scope="module", params=NAMES)
def oracle(request, tmp_path_factory) -> Oracle:
    return open_oracle(request.param, tmp_path_factory.mktemp(request.param) / "adopted")


def loss_of(oracle: Oracle, sound: str) -> torch.Tensor:
    example = oracle.example(sound)
    logits = oracle.model(**inputs([example], [oracle.states(sound)])).logits[0, :-1]
    labels = torch.tensor([token if train else -100 for token, train in zip(example.ids, example.train)])
    return functional.cross_entropy(logits, labels[1:])


@pytest.mark.parametrize("sound", SOUNDS)
def test_ids_and_labels_are_the_published_ones(oracle: Oracle, sound: str) -> None:
    example = oracle.example(sound)
    first, last = example.places[0], example.places[-1] + 1
    assert example.ids[:first] == oracle.arrays[f"{sound}/input_ids"].tolist()
    assert example.ids[last:] == oracle.arrays[f"{sound}/suffix_input_ids"].tolist()
    labels = [token if train else -100 for token, train in zip(example.ids, example.train)]
    assert labels[last:] == oracle.arrays[f"{sound}/suffix_labels"].tolist()
    assert not any(example.train[:last])
    assert last - first == oracle.json["wavs"][sound]["speech_embeds"]
    assert len(example.ids) == oracle.json["wavs"][sound]["total_positions"]


@pytest.mark.parametrize("sound", SOUNDS)
def test_the_adapter_gives_the_published_states(oracle: Oracle, sound: str) -> None:
    adapter, (states, frames) = oracle.model.adapter, padded([oracle.states(sound)])
    subsampled, counts = adapter.subsample(states, frames)
    assert counts.tolist() == oracle.embeddings(sound)
    for name, found in (
        ("subsampled", subsampled[0]),
        ("adapted", adapter.bottleneck(subsampled)[0]),
        ("speech_embeds", adapter(states, frames)),
    ):
        np.testing.assert_allclose(found.detach(), oracle.arrays[f"{sound}/{name}"], atol=1e-4)


def test_a_batch_of_sounds_gives_what_each_gives_alone(oracle: Oracle) -> None:
    together = oracle.model.adapter(*padded([oracle.states(sound) for sound in SOUNDS]))
    alone = np.concatenate([oracle.arrays[f"{sound}/speech_embeds"] for sound in SOUNDS])
    np.testing.assert_allclose(together.detach(), alone, atol=1e-4)


@pytest.mark.parametrize("sound", SOUNDS)
def test_logits_losses_and_gradients_are_the_published_ones(oracle: Oracle, sound: str) -> None:
    expected = oracle.json["wavs"][sound]
    oracle.model.zero_grad()
    loss = loss_of(oracle, sound)
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-4)
    logits = oracle.model(**inputs([oracle.example(sound)], [oracle.states(sound)])).logits[0].detach()
    whole = oracle.arrays.get(f"{sound}/logits")
    given = oracle.arrays[f"{sound}/logits_tail"] if whole is None else whole
    np.testing.assert_allclose(logits[-len(given) :], given, atol=1e-4)
    names = {"subsampler.": "", "adapter.": "", "speech_ln.": "norm."}
    weights = dict(oracle.model.adapter.named_parameters())
    for name, norm in expected["grad_norms"].items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        found = weights[names[prefix] + name.removeprefix(prefix)].grad
        assert found is not None and found.norm().item() == pytest.approx(norm, rel=1e-4)


def test_six_steps_of_adamw(oracle: Oracle) -> None:
    before = {name: weight.clone() for name, weight in oracle.model.adapter.state_dict().items()}
    weights = list(oracle.model.adapter.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.05)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = loss_of(oracle, SOUNDS[0])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(loss.item())
    oracle.model.adapter.load_state_dict(before)
    assert losses == pytest.approx(oracle.json["adamw"]["losses"], rel=1e-3)


def prompts_of(oracle: Oracle, sound: str, way: str) -> Row:
    """The prompt of one of the published instructions: continue, empty or translate."""
    instruction = {"continue": oracle.json["instruction"], "empty": ""}.get(
        way, "Please translate the following audio into German text."
    )
    parts = (instruction, Speech(sound)) if instruction else (Speech(sound),)
    return row(oracle.template.prompt([Message("human", parts)]), oracle.embeddings(sound), 0)


@pytest.mark.parametrize("way", ["continue", "empty", "translate"])
def test_greedy_replies_are_the_published_ones(oracle: Oracle, way: str) -> None:
    rows = [prompts_of(oracle, sound, way) for sound in SOUNDS]
    for sound, one in zip(SOUNDS, rows):
        given = oracle.json["wavs"][sound]["greedy"][way]
        first, last = one.places[0], one.places[-1] + 1
        assert (one.ids[:first], one.ids[last:]) == (given["prompt_ids"], given["suffix_ids"])
    ends = ends_of(oracle.model.llm, oracle.tokenizer)
    states = [oracle.states(sound) for sound in SOUNDS]
    expected = [oracle.json["wavs"][sound]["greedy"][way]["ids"] for sound in SOUNDS]
    assert replies(oracle.model, rows, states, ends, GREEDY) == expected  # a batch, padded on the left
    for one, sound, reply in zip(rows, states, expected):
        assert replies(oracle.model, [one], [sound], ends, GREEDY) == [reply]


def test_text_instructions_of_stage_1(oracle: Oracle) -> None:
    for example in oracle.json["stage1"][:2]:
        messages = (Message("human", (example["instruction"],)), Message("assistant", (example["output"],)))
        made = row(oracle.template.document(messages), [], 0)
        assert made.ids == example["input_ids"]
        labels = [token if train else -100 for token, train in zip(made.ids, made.train)]
        assert labels == example["labels"]
        logits = oracle.model(torch.tensor([made.ids])).logits[0, :-1]
        loss = functional.cross_entropy(logits, torch.tensor(labels[1:])).item()
        assert loss == pytest.approx(example["loss"], rel=1e-4)


def test_the_prompts_of_labels_and_what_the_llm_writes(oracle: Oracle) -> None:
    items = oracle.json["continuation"]["items"]
    prompts = [oracle.template.read_aloud(oracle.json["instruction"], item["transcript"]) for item in items]
    assert prompts == [item["prompt_ids"] for item in items]
    rows = [Row(ids, [False] * len(ids), []) for ids in prompts]
    written = replies(oracle.model, rows, [], ends_of(oracle.model.llm, oracle.tokenizer), Sampling(max_new_tokens=64))
    assert written == [item["new_ids"] for item in items]


def test_a_chat_of_two_turns(oracle: Oracle) -> None:
    chat, ends = oracle.json["chat"], ends_of(oracle.model.llm, oracle.tokenizer)
    question = next(ids for ids in chat["turn1_pieces"] if ids != [1])
    assert question
    asked = Message("human", ("Name three colours.",))
    first = row(oracle.template.prompt([asked]), [], 0)
    assert first.ids == [token for piece in chat["turn1_pieces"] for token in piece]
    assert replies(oracle.model, [first], [], ends, GREEDY) == [chat["turn1_ids"]]
    sound = chat["turn2_wav"]
    turns = [asked, Message("assistant", (chat["turn1_text"],)), Message("human", (Speech(sound),))]
    second = row(oracle.template.prompt(turns), oracle.embeddings(sound), 0)
    reply, opening, closing = chat["turn2_text_pieces"]
    assert second.ids[len(first.ids) : second.places[0]] == reply + opening
    assert second.ids[second.places[-1] + 1 :] == closing
    assert replies(oracle.model, [second], [oracle.states(sound)], ends, GREEDY) == [chat["turn2_ids"]]


def test_an_adopted_folder_is_exported_with_equal_tensors(oracle: Oracle, tmp_path) -> None:
    exported = export(oracle.folder, tmp_path / "exported")
    published = next(path for path in (FOLDER / name / "checkpoint" for name in NAMES) if same_config(path, exported))
    before = read_torch(published / "pytorch_model.bin")
    after = read_torch(exported / "pytorch_model.bin")
    assert after.keys() == {name for name in before if not name.endswith("rotary_emb.inv_freq")}
    for name, weight in after.items():
        assert weight.dtype == before[name].dtype and torch.equal(weight, before[name])
    for name in ("tokenizer.model", "preprocessor_config.json"):
        assert (exported / name).read_bytes() == (published / name).read_bytes()


def same_config(one, other) -> bool:
    return (one / "config.json").read_text().split() == (other / "config.json").read_text().split()


def test_a_published_folder_answers_from_the_wav(oracle: Oracle, tmp_path) -> None:
    model = BLSP.from_pretrained(oracle.folder)
    wavs = [WAVS / f"{sound}.wav" for sound in SOUNDS]
    for way, instruction in (("continue", oracle.json["instruction"]), ("empty", "")):
        expected = [oracle.json["wavs"][sound]["greedy"][way]["ids"] for sound in SOUNDS]
        prompts = [model.prepared(Request(wav, instruction)) for wav in wavs]
        assert replies(model.model, *flat(prompts), model.ends, GREEDY) == expected
    # bytes that are not UTF-8 are decoded in other ways by other releases, so texts are compared through ids
    texts = [model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
    assert [answer.text for answer in model.answer_batch(wavs, GREEDY)] == texts  # the published chat's way
    rows = [{"audio": str(wav), "reference": "x"} for wav in wavs] + [{"instruction": "Name three colours."}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = generate.Generation(instruction=oracle.json["instruction"], max_new_tokens=20)
    generate.main(tmp_path / "in.jsonl", tmp_path / "out.jsonl", oracle.folder, how=how)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    ids = [oracle.json["wavs"][sound]["greedy"]["continue"]["ids"] for sound in SOUNDS]
    expected = [model.tokenizer.decode(one, skip_special_tokens=True) for one in ids]
    assert [row["response"] for row in written[:4]] == expected


def test_a_published_chat_from_the_wav(oracle: Oracle) -> None:
    model, chat = BLSP.from_pretrained(oracle.folder), oracle.json["chat"]
    turn = (Message("human", ("Name three colours.",)), Message("assistant", (chat["turn1_text"],)))
    asked = Message("human", (Speech(str(WAVS / f"{chat['turn2_wav']}.wav")),))
    prompt = model._joined(model.template.prompt([*turn, asked]))
    assert replies(model.model, *flat([prompt]), model.ends, GREEDY) == [chat["turn2_ids"]]


def flat(prompts: list) -> tuple[list[Row], list[torch.Tensor]]:
    """Rows, and the states of all their sounds."""
    return [made for made, _ in prompts], [one for _, sounds in prompts for one in sounds]


def test_divergence_is_the_published_formula(oracle: Oracle) -> None:
    kd, sound = oracle.json["kd"], SOUNDS[0]
    messages = (
        Message("human", (oracle.json["instruction"], Speech(sound))),
        Message("assistant", (oracle.json["wavs"][sound]["answer"],)),
    )
    pieces = oracle.template.document(messages)
    read = [Tokens(oracle.template.text(kd["transcript"])) if isinstance(one, Speech) else one for one in pieces]
    heard, written = oracle.example(sound), row(read, [], 0)
    for temperature, expected in kd["temperature"].items():
        oracle.model.zero_grad()
        student, _ = counted_logits(oracle.model, inputs([heard], [oracle.states(sound)]), labels_of(heard))
        with torch.no_grad():
            ids = torch.tensor([written.ids])
            teacher, tokens = counted_logits(oracle.model.llm, {"input_ids": ids}, labels_of(written))
        loss = divergence(student, teacher, float(temperature)) / len(tokens)
        assert loss.item() == pytest.approx(expected["same_over_the_positions_that_predict_the_answer"], rel=1e-4)


def labels_of(made: Row) -> torch.Tensor:
    return torch.tensor([[token if train else -100 for token, train in zip(made.ids, made.train)]])
