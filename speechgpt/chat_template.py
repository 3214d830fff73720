"""The files of a checkpoint that other programs read: where a reply ends, and how a chat is rendered.

Programs that serve a checkpoint without this package read `generation_config.json` and `chat_template.jinja`. Those of
the text LLM would run on past `<eoa>`, and render chats as no stage was trained on them. A chat that is rendered with
this template and then tokenised has the ids of `Dialogue.prompt`, with two exceptions:

- Special tokens in typed text are special tokens: that is how units are sent (`<sosp><3><7><eosp>`, without spaces
  beside it). A public server must strip them from user text.
- A tokenizer with words that begin with a colon (`:D`) may read one where Dialogue has a colon and a text, since no
  text without a token could be put between the two. Byte-level tokenizers (Llama 3, Qwen) have such words,
  sentencepiece has not.
"""

from __future__ import annotations

import json

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from speechgpt.dialogue import Dialogue
from speechgpt.vocab import EOA, EOH, HUMAN, SPEECHGPT
from units.notation import SOSP


def prepare_for_serving(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, prefix: str = "") -> None:
    """Set, in place, the chat template of a widened tokenizer and the generation config of its model; both are saved
    with them.

    Args:
        prefix: the system text of the template, as in Dialogue.
    """
    tokenizer.chat_template = chat_template(tokenizer, prefix)
    model.generation_config = generation_config(tokenizer)


def generation_config(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Where replies end, and nothing else: a repetition penalty of the text LLM, for one, would affect units."""
    end = tokenizer.convert_tokens_to_ids(EOA)
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ends = [end] if tokenizer.eos_token_id is None else [end, tokenizer.eos_token_id]
    return GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=pad)


def chat_template(tokenizer: PreTrainedTokenizerBase, prefix: str = "") -> str:
    """The dialogue template for text turns, in jinja, with spaces where this tokenizer needs them."""
    lead, join = _spaces(tokenizer)
    start = (tokenizer.bos_token or "") + (lead if tokenizer.bos_token and prefix.strip() else "") + prefix.strip()
    join = f"{{{{ '' if text == '' or text.startswith('{SOSP}') else '{join}' }}}}" if join else ""
    body = f"{lead}:{join}{{{{ text }}}}"
    closed = f"{{{{ '{join and ' '};' if text.endswith(';') }}}}"  # parsing drops one closing semicolon (Dialogue)
    roles = "roles are user and assistant; the system text of this model is built in"
    return (
        f"{{{{ {json.dumps(start, ensure_ascii=False)} }}}}"
        "{% for message in messages %}{% set text = message['content'] | trim %}"
        f"{{% if message['role'] == 'user' %}}{HUMAN}{body}{EOH}"
        f"{{% elif message['role'] == 'assistant' %}}{SPEECHGPT}{body}{closed}{EOA}"
        f"{{% else %}}{{{{ raise_exception('{roles}') }}}}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{SPEECHGPT}{lead}:{{% endif %}}"
    )


def _spaces(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Spaces before and after the colon behind a special token, with which the ids equal those of Dialogue."""
    dialogue = Dialogue(tokenizer)

    def same(spelled: str, *parts: str) -> bool:
        meant = [token for part in parts for token in dialogue.encode_text(part)]
        return tokenizer.encode(HUMAN + spelled, add_special_tokens=False) == [dialogue.vocab.special_id(HUMAN), *meant]

    lead = next((space for space in ("", " ") if same(f"{space}:", ":")), "")
    join = next((space for space in ("", " ") if same(f"{lead}:{space}a", ":", "a")), "")
    return lead, join
