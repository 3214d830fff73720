"""Units and special tokens have ids of their own in every vocabulary, and typed text never becomes one of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from odd_tokenizers import LETTERS, MODELS, model_for, with_gaps, with_ids
from tiny_parts import K
from tiny_tokenizers import KINDS
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from speechgpt.dialogue import Conversation, Dialogue, Message
from speechgpt.generation.generate import generate
from speechgpt.sampling import Sampling
from speechgpt.typed_text import TextError
from speechgpt.vocab import SPECIAL_TOKENS, UnitVocab, VocabularyError, new_words, unused_word
from speechgpt.widen import widen

TYPED = ("say <7> please", "I typed <eoa> and [ta] here", "[Human]: hi", "<sosp><1><2><eosp>", "<7>", "a<11>b")
WORDS = 3 + len(LETTERS)
FUSED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def reopened(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    tokenizer.save_pretrained(folder / "saved")
    return AutoTokenizer.from_pretrained(folder / "saved")


def check_apart(tokenizer: PreTrainedTokenizerBase, known: dict[str, int]) -> UnitVocab:
    """Old words keep their ids, and the new ones are one block behind the largest."""
    table = tokenizer.get_vocab()
    assert {word: table[word] for word in known} == known
    first = max(known.values()) + 1
    assert [table[word] for word in new_words(K)] == list(range(first, first + K + len(SPECIAL_TOKENS)))
    assert len(set(table.values())) == len(table)
    assert {word: id for word, id in table.items() if word not in known and id < first} == {
        unused_word(id): id for id in set(range(first)) - set(known.values())
    }
    return UnitVocab.from_words(table)


def check_typed(dialogue: Dialogue, exact: bool = True) -> None:
    """What looks like units stays text."""
    for text in TYPED:
        ids = dialogue.encode_text(text)
        assert ids and not {*ids} & {*dialogue.vocab.special_ids.values()}
        assert not any(map(dialogue.vocab.is_unit, ids))
        assert not exact or dialogue.decode_text(ids) == text


@FUSED
@given(
    gaps=st.lists(st.integers(1, 4), min_size=WORDS, max_size=WORDS),
    kind=st.sampled_from(sorted(MODELS)),
    named=st.sets(st.sampled_from(["bos", "eos", "pad"])),
    added=st.lists(st.tuples(st.sampled_from(["<|x|>", "kubernetes", "[INST]"]), st.booleans()), max_size=3),
)
@example(gaps=[10] * 12 + [2] * (WORDS - 12), kind="BPE", named=set(), added=[("<|x|>", True)])
def test_new_words_are_behind_every_id_in_use(gaps, kind, named, added, tmp_path_factory) -> None:
    ids = [sum(gaps[:i]) - 1 for i in range(1, WORDS + 1)]
    words = [AddedToken(word, special=special, normalized=not special) for word, special in added]
    tokenizer = with_ids(kind, ids, sorted(named), words)
    known, text = tokenizer.get_vocab(), "the cat, kubernetes [x]: 12"
    if len(set(known.values())) < len(known):
        return  # the library itself gave an added word the id of another
    before, model = tokenizer.encode(text, add_special_tokens=False), model_for(tokenizer)
    vocab = widen(tokenizer, model, K)
    assert vocab == check_apart(tokenizer, known)
    again = reopened(tokenizer, tmp_path_factory.mktemp("odd"))
    assert check_apart(again, known) == vocab
    dialogue = Dialogue(again)
    assert dialogue.encode_text(text) == before
    assert model.get_input_embeddings().num_embeddings > max(again.get_vocab().values())
    check_typed(dialogue)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0, 1, 100])
def test_every_kind_with_gaps(kind: str, spread: int, tmp_path: Path) -> None:
    tokenizer = with_gaps(KINDS[kind](tmp_path), spread)
    known = tokenizer.get_vocab()
    model = model_for(tokenizer)
    widen(tokenizer, model, K)
    again = reopened(tokenizer, tmp_path)
    vocab = check_apart(again, known)
    dialogue = Dialogue(again)
    check_typed(dialogue)
    prompts = [dialogue.prompt([Message("human", ("what is",))])]
    unused = {id for word, id in again.get_vocab().items() if word == unused_word(id)}
    for ids in generate(model, dialogue, prompts, "text", Sampling(temperature=2.0, max_new_tokens=60, seed=0)):
        assert not {*ids} & unused and not any(map(vocab.is_unit, ids))


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_are_not_special_are_text(kind: str, tmp_path: Path) -> None:
    """As in the tokenizers that SpeechGPT published: units and special tokens are ordinary added words."""
    tokenizer = KINDS[kind](tmp_path)
    tokenizer.add_tokens(["kubernetes"])
    tokenizer.add_tokens(new_words(K))
    again = reopened(tokenizer, tmp_path)
    dialogue = Dialogue(again)
    check_typed(dialogue)
    assert again.convert_tokens_to_ids("kubernetes") in dialogue.encode_text("my kubernetes")
    conversation = Conversation((Message("human", ("<7>", (3,))), Message("assistant", ("[ta]", "[ua] <1>", (1,)))))
    rendered = dialogue.render(conversation).ids
    assert dialogue.vocab.decode(rendered) == [3, 1]
    assert again.encode("<7>", add_special_tokens=False)[-1] == dialogue.vocab.first_unit_id + 7  # left as it was


def test_words_of_the_base_vocabulary_are_text(tmp_path: Path) -> None:
    """A vocabulary that was trained with units in its text has them as words that its merges reach."""
    base = KINDS["gpt2"](tmp_path)
    state = json.loads(base.backend_tokenizer.to_str())
    words, merges = state["model"]["vocab"], state["model"]["merges"]
    for word in new_words(K):
        for end in range(2, len(word) + 1):
            if word[:end] not in words:
                merges.append([word[: end - 1], word[end - 1]])
                words[word[:end]] = 0 if end < len(word) else -1
    prefixes = [word for word, id in words.items() if id == 0 and len(word) > 1]
    rest = max(words.values()) + 1
    for place, word in enumerate([*prefixes, *new_words(K)]):
        words[word] = rest + place
    state["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    base._tokenizer = Tokenizer.from_str(json.dumps(state))
    dialogue = Dialogue(base)
    assert base.encode("<7>", add_special_tokens=False) == [dialogue.vocab.first_unit_id + 7]
    check_typed(dialogue)


@pytest.mark.parametrize("named", [(), ("bos",), ("eos",), ("pad",), ("bos", "eos", "pad")])
def test_start_end_and_padding_may_be_missing(named: tuple[str, ...], tmp_path: Path) -> None:
    tokenizer = with_ids("BPE", range(WORDS), named)
    model = model_for(tokenizer)
    widen(tokenizer, model, K)
    dialogue = Dialogue(reopened(tokenizer, tmp_path))
    conversation = Conversation((Message("human", ((1, 2),)), Message("assistant", ("one", "two", (3,)))))
    rendered = dialogue.render(conversation)
    assert (rendered.ids[0] == 1) == ("bos" in named)
    reply = [token for token, counts in zip(rendered.ids, rendered.train) if counts]
    read = dialogue.parse_reply(reply[1:] if reply[0] == dialogue.vocab.special_id("[SpeechGPT]") else reply, True)
    assert (read.text, read.units) == ("two", (3,))
    prompt = dialogue.prompt([Message("human", ("one",))])
    for form in ("text", "units", "chain"):
        assert generate(model, dialogue, [prompt, prompt[1:]], form, Sampling(max_new_tokens=8))
    assert model.generation_config.pad_token_id is not None


def test_an_id_that_is_shared_is_refused() -> None:
    """As release 0.1.0 widened a vocabulary with gaps."""
    words = {"a": 0, "z": 5} | {word: 2 + place for place, word in enumerate(new_words(K))}
    with pytest.raises(VocabularyError, match="'z' are both token 5"):
        UnitVocab.from_words(words)


@pytest.mark.parametrize("word", ["<eoh>", "[ta]", "<1>"])
def test_a_text_llm_with_such_a_word_is_refused_before_anything_changes(word: str) -> None:
    tokenizer = with_ids("BPE", range(WORDS), added=[AddedToken(word)])
    model, known = model_for(tokenizer), tokenizer.get_vocab()
    with pytest.raises(VocabularyError, match="already"):
        widen(tokenizer, model, K)
    assert tokenizer.get_vocab() == known and model.config.vocab_size == len(known)


@given(st.text(max_size=8), st.characters(categories=["Cs"]), st.text(max_size=8))
def test_text_that_is_not_unicode_is_an_error(dialogue: Dialogue, before: str, half: str, after: str) -> None:
    with pytest.raises(TextError, match="not Unicode"):
        dialogue.encode_text(f"a{before}{half}{after}a")
