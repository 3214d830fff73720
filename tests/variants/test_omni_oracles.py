"""Equality with the published LLaMA-Omni code on tiny random weights: ids, states, logits, units, losses, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omni_oracles import FOLDER, MODEL, NAMES, WAVS, Oracle, open_oracle
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from speechgpt.dialogue import Message
from speechgpt.sampling import Sampling
from units.audio import load_wav
from units.encoder.published.checkpoint_files import read_torch
from variants.listening import Row, draws, ends_of
from variants.llama_omni.network.ctc import CtcStream, collapse, ctc_loss, frames_of, spread
from variants.llama_omni.network.ctc_decoder import FrameStream
from variants.llama_omni.network.decoder import Answers
from variants.llama_omni.network.shapes import DecoderShape
from variants.llama_omni.upstream import export
from variants.published_files import read_object

GREEDY = Sampling(max_new_tokens=20)


@pytest.fixture(scope="module", params=NAMES)
def oracle(request, tmp_path_factory) -> Oracle:
    return open_oracle(request.param, tmp_path_factory.mktemp(request.param) / "adopted")


def prompt_of(oracle: Oracle, sound: str) -> Row:
    return oracle.row(oracle.template.prompt([oracle.question(sound)]), sound)


def drawn(oracle: Oracle, sound: str, length: int = 20) -> tuple[list[int], Tensor]:
    """Greedy token ids, and the states that predict them, (A, H)."""
    states: list[Tensor] = []
    ends = ends_of(oracle.model.llm, oracle.tokenizer)
    steps = draws(
        oracle.model,
        [prompt_of(oracle, sound)],
        [oracle.states[sound]],
        ends,
        Sampling(max_new_tokens=length),
        observe=states.append,
    )
    ids = [token for (token,) in steps if token is not None]
    return ids, torch.cat(states)[: len(ids)]


# --- listening


def test_states_are_the_published_ones_silence_included(oracle: Oracle) -> None:
    for sound in oracle.sounds:
        states = oracle.states[sound]
        mel = oracle.encoder.mel(load_wav(WAVS / f"{sound}.wav")).T
        head = oracle.arrays[f"{sound}/encoder_states_head"]
        assert len(states) == oracle.json["wavs"][sound]["encoder_frames"]
        np.testing.assert_allclose(mel, oracle.arrays[f"{sound}/mel"], atol=1e-4)
        np.testing.assert_allclose(states[: len(head)], head, atol=1e-4)
        np.testing.assert_allclose(states[-10:], oracle.arrays[f"{sound}/encoder_states_tail"], atol=1e-4)


def test_the_adaptor_gives_the_published_embeddings_alone_and_in_a_batch(oracle: Oracle) -> None:
    states = torch.stack([oracle.states[sound] for sound in oracle.sounds])
    expected = [oracle.arrays[f"{sound}/speech_embeds"] for sound in oracle.sounds]
    made = oracle.model.adapter(states, torch.full((len(states),), states.shape[1])).detach()
    np.testing.assert_allclose(made, np.concatenate(expected), atol=1e-4)
    short = oracle.model.adapter(states[:2], torch.tensor([1500, 23])).detach()  # 23 own frames, garbage behind them
    alone = oracle.model.adapter(states[1:2, :23], torch.tensor([23])).detach()
    np.testing.assert_allclose(short[len(expected[0]) :], alone, atol=1e-5)
    assert len(alone) == 23 // oracle.facts.shape.rate


def test_prompt_ids_have_two_bos(oracle: Oracle) -> None:
    for sound in oracle.sounds:
        one = prompt_of(oracle, sound)
        first, last = one.places[0], one.places[-1] + 1
        assert [*one.ids[:first], -200, *one.ids[last:]] == oracle.json["prompt_ids"]
        assert first == oracle.json["speech_token_at"]
        assert len(one.ids) == oracle.json["wavs"][sound]["positions"]
        with torch.no_grad():
            logits = oracle.model(**oracle.inputs(one, sound)).logits[0]
        np.testing.assert_allclose(logits[-16:], oracle.arrays[f"{sound}/logits_tail"], atol=1e-4)
        np.testing.assert_allclose(logits[::20], oracle.arrays[f"{sound}/logits_every_20"], atol=1e-4)


# --- speaking


def test_greedy_ids_states_frames_and_units(oracle: Oracle) -> None:
    step = 1 if oracle.facts.decoder.upsample == 25 else 5
    for sound in oracle.sounds:
        ids, states = drawn(oracle, sound)
        given = oracle.json["wavs"][sound]
        assert ids == given["ids"] and oracle.tokenizer.decode(ids, skip_special_tokens=True) == given["text"]
        np.testing.assert_allclose(states, oracle.arrays[f"{sound}/answer_hidden_states"], atol=1e-4)
        decoder, upsample = oracle.decoder, oracle.facts.decoder.upsample
        frames = len(ids) * upsample
        with torch.no_grad():
            tokens = decoder.tokens(states)
            hidden = decoder.hidden(tokens[spread(len(ids), frames)][None])[0]
            logits = decoder(tokens, [len(ids)], [frames])[0]
        np.testing.assert_allclose(hidden[::5], oracle.arrays[f"{sound}/decoder_states_every_5"], atol=1e-3)
        np.testing.assert_allclose(logits[::step], oracle.arrays[f"{sound}/ctc_logits"], atol=1e-3)
        assert logits.argmax(-1).tolist() == oracle.arrays[f"{sound}/ctc_pred"].tolist()
        units = collapse(logits.argmax(-1).tolist(), decoder.blank)
        assert units == oracle.arrays[f"{sound}/units"].tolist()
        assert " ".join(map(str, units)) == given["prediction_units"]


def streamed(oracle: Oracle, states: Tensor) -> list[list[int]]:
    """New units after each token."""
    stream = oracle.decoder.stream()
    return [stream.push(state) for state in states]


def chunks_of(added: list[list[int]], omega: int) -> list[dict]:
    """The published rule: all that is new goes to the vocoder once it is `omega` units or more.

    The published code looks when the next token is there, and at the end at what is left; here one token sooner.
    """
    found, waiting = [], []
    for after, units in enumerate([[], *added[:-1]], 1):
        waiting += units
        if len(waiting) >= omega:
            found.append({"after_token": after, "units": waiting})
            waiting = []
    waiting = waiting + added[-1]
    return found + ([{"after_token": len(added), "units": waiting, "rest": True}] if waiting else [])


def test_streamed_units_and_chunks_are_the_published_ones(oracle: Oracle) -> None:
    for sound in oracle.sounds:
        states = torch.from_numpy(oracle.arrays[f"{sound}/answer_hidden_states"])
        added = streamed(oracle, states)
        after = [token for token, units in enumerate(added, 2) for _ in units]  # one token sooner here
        assert sum(added, []) == oracle.arrays[f"{sound}/stream_units"].tolist()
        assert after == oracle.arrays[f"{sound}/stream_units_after_token"].tolist()
        for omega, chunks in oracle.json["wavs"][sound]["chunks"].items():
            assert chunks_of(added, int(omega)) == chunks


def test_a_long_stream(oracle: Oracle) -> None:
    given = oracle.json.get("long_stream")
    if given is None:
        pytest.skip("this model has no long stream")
    ids, states = drawn(oracle, given["wav"], 80)
    assert ids == given["ids"]
    added = streamed(oracle, states)
    assert sum(added, []) == given["units"]
    assert [token for token, units in enumerate(added, 2) for _ in units] == given["after_token"]
    for omega, chunks in given["chunks"].items():
        assert chunks_of(added, int(omega)) == chunks


def test_cached_frames_equal_the_whole(oracle: Oracle) -> None:
    sound = oracle.sounds[0]
    states = torch.from_numpy(oracle.arrays[f"{sound}/answer_hidden_states"])
    decoder, upsample = oracle.decoder, oracle.facts.decoder.upsample
    with torch.no_grad():
        whole = decoder(decoder.tokens(states), [len(states)], [len(states) * upsample])[0]
    stream = FrameStream(decoder)
    parts = torch.cat([stream.push(state) for state in states])
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)


def test_collapse(oracle: Oracle) -> None:
    for case in oracle.json["ctc_postprocess"]:
        assert collapse(case["frames"], case["blank"]) == case["units"]
        stream = CtcStream(case["blank"])
        assert sum((stream.push([frame]) for frame in case["frames"]), []) == case["units"]


# --- training


def example(oracle: Oracle, number: int) -> Row:
    sound = oracle.json["training"]["wavs"][number]
    turns = (oracle.question(sound), Message("assistant", (oracle.json["training"]["answers"][number],)))
    return oracle.row(oracle.template.document(turns), sound)


def test_examples_and_labels_are_the_published_ones(oracle: Oracle) -> None:
    for number, given in enumerate(oracle.json["training"]["examples"]):
        one = example(oracle, number)
        first, last = one.places[0], one.places[-1] + 1
        assert [*one.ids[:first], -200, *one.ids[last:]] == given["input_ids"]
        labels = [token if train else -100 for token, train in zip(one.ids, one.train)]
        assert [*labels[:first], -100, *labels[last:]] == given["labels"]
        with_speech = oracle.arrays["training/labels_with_speech"][number][: len(labels)]
        assert labels == with_speech.tolist()


def text_loss(oracle: Oracle, numbers: list[int]) -> Tensor:
    total, count = torch.zeros(()), 0
    for number in numbers:
        one = example(oracle, number)
        logits = oracle.model(**oracle.inputs(one, oracle.json["training"]["wavs"][number])).logits[0, :-1]
        labels = torch.tensor([token if train else -100 for token, train in zip(one.ids, one.train)])[1:]
        total = total + functional.cross_entropy(logits, labels, reduction="sum")
        count += int((labels != -100).sum())
    return total / count


def check_gradients(oracle: Oracle, norms: dict[str, float]) -> None:
    """Gradient norms by the names of the published code."""
    found = {}
    for name, weight in oracle.model.named_parameters():
        theirs = name.removeprefix("llm.")
        theirs = theirs.replace("adapter.", "model.speech_projector.").replace("decoder.", "speech_generator.", 1)
        found[theirs] = 0.0 if weight.grad is None else weight.grad.norm().item()
    for name, norm in norms.items():
        assert found[name] == pytest.approx(norm, rel=1e-3, abs=1e-7), name


@pytest.mark.parametrize(("case", "numbers"), [("first", [0]), ("second", [1]), ("batch", [0, 1])])
def test_stage_1_losses_and_gradients(oracle: Oracle, case: str, numbers: list[int]) -> None:
    expected = oracle.json["training"]["stage1"][case]
    oracle.model.zero_grad()
    loss = text_loss(oracle, numbers)
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-4)
    check_gradients(oracle, expected["grad_norms"])


def answer_of(oracle: Oracle, number: int, units: list[int], late: int, needed: bool) -> tuple[Row, Tensor, int]:
    """An example, the places of its answer's tokens, and the frames that it has.

    Args:
        late: 1 takes the states that upstream's training code takes, which stand one later than generation's.
        needed: give units that do not fit the frames that they need, as this package does; upstream gives one each.
    """
    one = example(oracle, number)
    places = torch.tensor([place for place, train in enumerate(one.train) if train])
    upsample = oracle.facts.decoder.upsample
    frames = frames_of(len(places), units, upsample) if needed else max(len(places) * upsample, len(units))
    return one, places + late, frames


def unit_loss(oracle: Oracle, cases: list[tuple[int, list[int]]], late: int = 1, needed: bool = False) -> Tensor:
    total, count = torch.zeros(()), 0
    for number, padded in cases:
        units = [unit for unit in padded if unit >= 0]  # the published batch is padded with -100
        one, places, frames = answer_of(oracle, number, units, late, needed)
        sound = oracle.json["training"]["wavs"][number]
        inputs = oracle.inputs(one, sound)
        if late:  # the word after the last one is not there; upstream's decoder reads no words
            inputs["input_ids"] = functional.pad(inputs["input_ids"], (0, 1))
        logits = oracle.decoder(oracle.model.answer_tokens(said=places, **inputs), [len(places)], [frames])
        target = torch.tensor(units)
        total = total + ctc_loss(logits, torch.tensor([frames]), target, torch.tensor([len(units)]))
        count += len(units)
    return total / count


CASES = {
    "first": [0],
    "second_more_units_than_25_per_token": [1],
    "second_more_units_than_12_per_token": [1],
    "batch": [0, 1],
    "repeated_neighbours": [0],
    "impossible": [0],
}


def test_stage_2_losses_and_gradients(oracle: Oracle) -> None:
    given = oracle.json["training"]["stage2"]
    seen = set()
    for case, numbers in CASES.items():
        if case not in given:
            continue
        seen.add(case)
        oracle.model.zero_grad()
        oracle.model.requires_grad_(False)
        oracle.decoder.requires_grad_(True)
        loss = unit_loss(oracle, list(zip(numbers, given[case]["tgt_units"])))
        loss.backward()
        oracle.model.requires_grad_(True)
        assert loss.item() == pytest.approx(given[case]["loss"], rel=1e-4), case
        check_gradients(oracle, given[case]["grad_norms"])
    assert len(seen) == 5


def test_what_this_package_trains_is_what_generation_gives_the_decoder(oracle: Oracle) -> None:
    given = oracle.json["training"]["stage2"]
    units = given["first"]["tgt_units"][0]
    one, places, _ = answer_of(oracle, 0, units, late=0, needed=True)
    answers = Answers(places, [len(places)], torch.tensor(units), [len(units)])
    loss = oracle.model(**oracle.inputs(one, oracle.json["training"]["wavs"][0]), answers=answers) / len(units)
    assert loss.item() == pytest.approx(given["loss_of_first_with_states_that_predict_the_answer"], rel=1e-4)


def test_no_target_is_impossible(oracle: Oracle) -> None:
    units = oracle.json["training"]["stage2"]["impossible"]["tgt_units"][0]
    oracle.model.zero_grad()
    loss = unit_loss(oracle, [(0, units)], late=0, needed=True)
    loss.backward()
    assert loss.item() > 0.1
    assert all(weight.grad is not None and weight.grad.norm() > 0 for weight in oracle.decoder.parameters())


def test_frames_are_spread_as_upstream_spreads_them(oracle: Oracle) -> None:
    given = oracle.json["training"]["stage2"]["uniform_index"]
    for tokens, frames, index in zip(given["src"], given["tgt"], given["index"]):
        assert spread(tokens, frames).tolist() == index


def test_joint_loss(oracle: Oracle) -> None:
    given = oracle.json["training"]["stage2"]
    with torch.no_grad():
        loss = text_loss(oracle, [0]) + unit_loss(oracle, [(0, given["first"]["tgt_units"][0])])
    assert loss.item() == pytest.approx(given["joint"]["loss"], rel=1e-4)


def test_six_steps_of_adamw(oracle: Oracle) -> None:
    given = oracle.json["training"]["stage2"]
    before = {name: weight.clone() for name, weight in oracle.decoder.state_dict().items()}
    weights = list(oracle.decoder.parameters())
    optimizer = torch.optim.AdamW(weights, lr=2e-4, weight_decay=0.0)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = unit_loss(oracle, [(0, given["first"]["tgt_units"][0])])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(loss.item())
    oracle.decoder.load_state_dict(before)
    assert losses == pytest.approx(given["adamw"]["losses"], rel=1e-3)


# --- folders


def test_an_adopted_folder_is_exported_with_equal_tensors(oracle: Oracle, tmp_path) -> None:
    exported = export(oracle.folder, tmp_path / "exported")
    assert oracle.facts.decoder
    name = NAMES[0] if oracle.facts.decoder.upsample == 25 else NAMES[1]
    published = FOLDER / name / MODEL
    before, after = load_file(published / "model.safetensors"), load_file(exported / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(weight.dtype == after[key].dtype and torch.equal(weight, after[key]) for key, weight in before.items())
    whisper = read_torch(FOLDER / name / "models/speech_encoder/tiny-random.pt")
    written = read_torch(exported / "speech_encoder.pt")
    assert whisper["dims"] == written["dims"]
    assert whisper["model_state_dict"].keys() == written["model_state_dict"].keys()
    for key, weight in whisper["model_state_dict"].items():
        assert torch.equal(weight, written["model_state_dict"][key])
    assert read_object(exported / "config.json") == read_object(published / "config.json")
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (exported / file).read_bytes() == (published / file).read_bytes()


def test_published_shapes_are_read_without_running_them() -> None:
    assert DecoderShape.published("(2,4096,32,11008)", 25) == DecoderShape()
    for text in ("__import__('os').system('true')", "(2,4096,32)", "(2,4096,32,-1)", ""):
        with pytest.raises(ValueError, match="four whole numbers"):
            DecoderShape.published(text, 25)
