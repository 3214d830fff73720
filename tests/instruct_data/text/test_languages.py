"""The language filter: by script first, then by language; it holds in both directions, and for short texts."""

from __future__ import annotations

import pytest

from instruct_data.text.chats import TextChat, TextPair
from instruct_data.text.filters import Filters
from instruct_data.text.languages import is_foreign, language_code, likely_language
from instruct_data.text.reasons import TextReason
from instruct_data.text.scripts import script_counts, scripts_of
from units.runtime.refusals import Refusals

CHATS = {
    "zh": [
        ("你好,今天天气怎么样?", "今天天气很好,气温是25度。"),
        ("北京今天需要带伞吗", "今天北京晴天,不需要带伞。"),
        ("你好", "谢谢"),
    ],
    "ar": [
        ("مرحبا كيف حالك اليوم", "أنا بخير شكرا لك، عندي ٣ كتب"),
        ("ما هي عاصمة السعودية ومتى تأسست", "الرياض هي العاصمة"),
    ],
    "hi": [("नमस्ते आप कैसे हैं", "मैं ठीक हूँ, धन्यवाद। 5 किताबें"), ("भारत की राजधानी क्या है", "भारत की राजधानी नई दिल्ली है")],
    "ja": [
        ("こんにちは、元気ですか", "はい、元気です。"),
        ("東京の天気はどうですか", "今日は晴れです。"),
        ("元気ですか", "元気です"),
    ],
    "ko": [("오늘 날씨가 어때요", "오늘 날씨가 좋아요"), ("네?", "네.")],
    "ru": [("Что ты делаешь сегодня?", "Я читаю книгу, а вечером пойду гулять.")],
    "en": [
        ("how are you today my friend", "i am fine thank you very much"),
        ("what is two plus two", "that makes four"),
    ],
    "de": [("Wie geht es dir heute?", "Mir geht es gut, danke."), ("Guten Morgen!", "Das Wetter ist schön.")],
    "fr": [("Bonjour, comment ça va ?", "Je vais bien, merci."), ("Quel temps fait-il ?", "Il fait beau.")],
    "es": [("¿Cómo estás?", "Muy bien, gracias."), ("¿Dónde está la biblioteca?", "Está en la calle mayor.")],
    "el": [("Τι κάνεις;", "Καλά, ευχαριστώ.")],
    "he": [("מה שלומך?", "טוב תודה")],
    "th": [("สวัสดีครับ", "สบายดีครับ")],
    "fa": [("سلام حال شما چطور است", "خوبم ممنون از شما")],
    "uk": [("Привіт, як ти сьогодні?", "Дякую, у мене все добре.")],
}


@pytest.mark.parametrize("wanted", CHATS)
def test_a_filter_keeps_its_language_and_no_other(wanted: str) -> None:
    filters = Filters(language=wanted)
    for language, chats in CHATS.items():
        for question, answer in chats:
            refusals = Refusals()
            kept = filters.apply(TextChat((TextPair(question, answer),)), "here", refusals)
            assert (kept is not None) == (language == wanted), (wanted, question)
            assert refusals.counts == ({} if kept else {TextReason.LANGUAGE: 1})


ENGLISH = [
    "Yes.",
    "No, thanks.",
    "The café is open.",
    "A naïve résumé.",
    "José lives in São Paulo.",
    "Antonín Dvořák composed it.",
    "I visited Kraków, Łódź and Gdańsk.",
    "Gabriel García Márquez.",
    "Zoë met François.",
    "x² + y² = z²",
    "E = mc²",
    "π r²",
    "42",
    "٣",
    "I love sushi and karaoke.",
    "What does 你好 mean?",
    "The capital of Russia is Москва.",
    "déjà vu all over again",
    "α and β are angles.",
    "Is the café open?\nJosé and Zoë say it is.",
    "So, MP3 or H264?",
    "ＨＥＬＬＯ there my friend",
    "it's a “quoted” text – really",
    "…",
    "Ha ha ha ha ha.",
]


@pytest.mark.parametrize("text", ENGLISH)
def test_names_loan_words_and_formulas_are_english_too(text: str) -> None:
    assert not is_foreign(text, "en")


@pytest.mark.parametrize(
    "text, language",
    [
        ("好的,我用 Python 写。", "zh"),
        ("請問台北今天天氣如何", "zh"),
        ("東京", "ja"),
        ("Microsoftのソフトです", "ja"),
        ("E = mc²", "ru"),
        ("Сколько будет x + y?", "ru"),
        ("Я люблю Windows и Linux", "ru"),
        ("USB-порт", "ru"),
        ("Ja.", "de"),
        ("Das Café ist schön.", "de"),
        ("Добар дан", "sr"),
        ("Dobar dan", "sr"),
    ],
)
def test_words_of_other_scripts_do_not_make_a_text_foreign(text: str, language: str) -> None:
    assert not is_foreign(text, language)


@pytest.mark.parametrize(
    "text, language",
    [
        ("Да", "en"),
        ("你", "en"),
        ("ㄅㄆㄇ", "en"),
        ("ｶﾀｶﾅ", "en"),
        ("Hello 今天天气很好", "en"),
        ("Yes.", "ru"),
        ("Hello", "zh"),
        ("元気です", "zh"),
        ("你好,请问", "ko"),
        ("请问您好吗", "ja"),
        ("Je préfère le thé à la menthe.", "en"),
        ("QUEL TEMPS FAIT IL AUJOURD'HUI", "en"),
    ],
)
def test_a_text_of_another_script_or_language_is_foreign_however_short(text: str, language: str) -> None:
    assert is_foreign(text, language)


def test_scripts_are_counted_in_words() -> None:
    assert script_counts("What does 你好 mean? x = 3") == {"LATIN": 3, "CJK": 2}
    assert script_counts("元気です") == {"KANA": 4}  # the Chinese characters of a Japanese text
    assert script_counts("चाँद, 7 ... 😀") == {"DEVANAGARI": 1}
    assert script_counts("") == {}
    assert scripts_of("sr") == {"CYRILLIC", "LATIN"} and scripts_of("de") == {"LATIN"}


def test_varieties_count_as_their_language() -> None:
    assert likely_language("你好世界") == "zh"  # py3langid: Cantonese 0.68, Chinese 0.25
    assert likely_language("كيف حالك اليوم") == "ar"
    assert likely_language("how are you today my friend") == "en"
    assert likely_language("42") is None
    assert language_code("zh-TW") == "zh"
    with pytest.raises(ValueError, match="klingon"):
        language_code("klingon")
