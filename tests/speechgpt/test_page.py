"""The page in a real browser: headless Chromium, with a wav for a microphone. Skipped where there is no Chromium."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
import soxr
from echo_system import ANSWERED, Echo, tone
from serving import SAMPLING, audio
from tiny_parts import tones

from speechgpt.answers import Piece
from speechgpt.serve.application import Server, Serving

sync_api = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright: pip install playwright")
expect, Browser, Page = sync_api.expect, sync_api.Browser, sync_api.Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
PATIENCE = 20_000  # milliseconds
SPOKEN = 1.2  # seconds of the sound in the microphone; silence follows
PHONE = {"width": 360, "height": 740}
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(Echo(), SAMPLING, Serving(port=0, rows=4)).background() as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    heard = tmp_path_factory.mktemp("microphone") / "heard.wav"
    silence = [np.zeros(round(16_000 * seconds), np.float32) for seconds in (0.5, 2.0)]
    soundfile.write(heard, np.concatenate([silence[0], tones(SPOKEN), silence[1]]), 16_000)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={heard}",
            ],
        )
        yield browser
        browser.close()


class Opened:
    """The page in a browser. errors: of its scripts, and what it loaded from elsewhere."""

    def __init__(self, browser: Browser, server: Server, viewport: dict[str, int]) -> None:
        self.context = browser.new_context(viewport=viewport)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.asked: list[dict] = []
        host = f"127.0.0.1:{server.address[1]}"
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: line.type == "error" and self.errors.append(line.text))
        self.page.on("request", lambda request: self._see(request, host))
        self.page.goto(f"http://{host}/")

    def _see(self, request, host: str) -> None:
        if host not in request.url.split("/")[2:3] and not request.url.startswith(("data:", "blob:")):
            self.errors.append(request.url)
        if request.method == "POST":
            self.asked.append(json.loads(request.post_data))

    @property
    def answers(self):
        return self.page.get_by_label("answer", exact=True)

    def ask(self, text: str) -> None:
        self.page.get_by_role("textbox", name="question").fill(text)
        self.page.get_by_role("button", name="ask", exact=True).click()

    def wait(self, count: int) -> None:
        """For the end of so many answers."""
        expect(self.page.locator(".model[aria-busy=false]")).to_have_count(count)


@pytest.fixture
def opened(browser: Browser, server: Server) -> Iterator[Opened]:
    opened = Opened(browser, server, {"width": 760, "height": 900})
    expect(opened.page.locator("#model")).to_contain_text("echo-1")
    yield opened
    opened.context.close()
    assert opened.errors == []


def test_a_typed_question_is_answered_in_text_and_sound(opened: Opened) -> None:
    opened.ask("what is two")
    opened.wait(1)
    expect(opened.answers.locator(".text")).to_have_text("you said what is two")
    expect(opened.answers.get_by_role("img")).to_have_attribute(
        "aria-label", f"spectrogram of the answer, {ANSWERED:.1f} seconds"
    )
    times = opened.answers.locator(".times").inner_text()
    assert "text after" in times and "sound after" in times and f"{ANSWERED:.2f} s of sound" in times
    expect(opened.answers.locator("audio")).to_have_count(1)
    expect(opened.page.get_by_role("button", name="stop")).to_be_disabled()  # when the sound has been played


def test_typed_questions_without_sound(opened: Opened) -> None:
    opened.page.get_by_text("options").click()
    opened.page.get_by_label("answered aloud").uncheck()
    opened.ask("what is two")
    opened.wait(1)
    expect(opened.answers.locator("audio")).to_have_count(0)
    assert "modalities" not in opened.asked[0]


def test_a_file_is_heard_and_answered(opened: Opened) -> None:
    sound = audio(tones(1.0))
    opened.page.get_by_label("file").set_input_files({"name": "q.wav", "mimeType": "audio/wav", "buffer": sound})
    opened.wait(1)
    content = [{"type": "input_audio", "input_audio": {"data": base64.b64encode(sound).decode(), "format": "wav"}}]
    expect(opened.answers.locator(".heard")).to_have_text("heard: 1.0 seconds")
    expect(opened.answers.locator(".text")).to_have_text("you said 1.0 seconds")
    expect(opened.answers.locator("audio")).to_have_count(1)
    picture = opened.page.locator(".human").get_by_role("img")
    expect(picture).to_have_attribute("aria-label", "spectrogram of the question, 1.0 seconds")
    assert opened.asked[0]["messages"][0]["content"] == content  # the file as it is


def test_a_file_that_the_server_refuses(opened: Opened) -> None:
    opened.page.get_by_label("file").set_input_files(
        {"name": "q.wav", "mimeType": "audio/wav", "buffer": audio(np.zeros(16_000, np.float32))}
    )
    expect(opened.answers.locator(".wrong")).to_contain_text("silent")
    assert len(opened.errors) == 1 and "400" in opened.errors.pop()


def test_the_microphone_while_a_button_is_held(opened: Opened) -> None:
    talk = opened.page.get_by_role("button", name="hold to talk")
    talk.hover()
    opened.page.mouse.down()
    expect(opened.page.get_by_role("status")).to_have_text("recording")
    expect(talk).to_have_attribute("aria-pressed", "true")
    loudest, end = 0.0, time.monotonic() + 10
    while loudest < 0.5 and time.monotonic() < end:
        loudest = max(loudest, float(opened.page.get_by_label("microphone level").evaluate("one => one.value")))
    assert 0.5 <= loudest <= 1
    opened.page.wait_for_timeout(1000)
    opened.page.mouse.up()
    opened.wait(1)
    expect(talk).to_have_attribute("aria-pressed", "false")
    sent = opened.asked[0]["messages"][0]["content"][0]["input_audio"]
    wav, rate = soundfile.read(io.BytesIO(base64.b64decode(sent["data"])))
    assert rate == 24_000 and len(wav) > 0.9 * rate and np.abs(wav).max() > 0.1


def test_the_microphone_by_keys_alone(opened: Opened) -> None:
    talk, status = opened.page.get_by_role("button", name="hold to talk"), opened.page.get_by_role("status")
    talk.focus()
    opened.page.keyboard.press("Space")  # a short press begins, the next one ends
    expect(status).to_have_text("recording")
    opened.page.keyboard.press("Escape")
    expect(status).to_have_text("")
    opened.page.wait_for_timeout(300)
    assert opened.asked == []
    opened.page.keyboard.press("Enter")
    expect(status).to_have_text("recording")
    opened.page.wait_for_timeout(2500)
    opened.page.keyboard.press("Enter")
    opened.wait(1)
    opened.page.keyboard.down("Space")
    expect(status).to_have_text("recording")
    opened.page.wait_for_timeout(2500)
    opened.page.keyboard.up("Space")
    opened.wait(2)


def test_hands_free(opened: Opened, server: Server) -> None:
    button = opened.page.get_by_role("button", name="hands-free")
    button.click()
    opened.wait(1)
    expect(button).to_have_attribute("aria-pressed", "true")
    name = opened.page.locator(".human").first.get_by_role("img").get_attribute("aria-label")
    assert SPOKEN < float(name.split()[-2]) < SPOKEN + 1.5
    expect(opened.answers.first.locator(".heard")).to_be_visible()
    expect(opened.answers.first.locator("audio")).to_have_count(1)
    opened.wait(2)
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    deadline = time.monotonic() + 10
    while server.service.sessions and time.monotonic() < deadline:
        opened.page.wait_for_timeout(50)
    assert server.service.sessions == 0


@pytest.mark.parametrize("way", ["button", "key", "another question"])
def test_stop(opened: Opened, server: Server, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    left = threading.Event()

    def endless(*_: object) -> Iterator[Piece]:
        try:
            for _ in range(3000):
                yield Piece(text="more ", wav=tone(0.05))
                time.sleep(0.02)
        finally:
            left.set()

    monkeypatch.setattr(Echo, "stream", endless)
    opened.page.get_by_label("file").set_input_files(
        {"name": "q.wav", "mimeType": "audio/wav", "buffer": audio(tones(0.5))}
    )
    expect(opened.answers.locator(".text")).to_contain_text("more more more")
    if way == "button":
        opened.page.get_by_role("button", name="stop").click()
    elif way == "key":
        opened.page.keyboard.press("Escape")
    else:
        opened.ask("what is two")
    expect(opened.answers.first.locator(".wrong")).to_have_text("stopped")
    assert left.wait(10)
    opened.wait(2 if way == "another question" else 1)
    expect(opened.page.get_by_role("button", name="stop")).to_be_disabled()


def test_earlier_turns_are_sent_if_wanted(opened: Opened) -> None:
    opened.ask("one")
    opened.wait(1)
    opened.ask("two")
    opened.wait(2)
    assert len(opened.asked[1]["messages"]) == 1
    opened.page.get_by_text("options").click()
    opened.page.get_by_label("given the earlier turns").check()
    opened.ask("three")
    opened.wait(3)
    said = opened.asked[2]["messages"]
    assert [one["content"] for one in said if one["role"] == "user"] == ["one", "two", "three"]
    expect(opened.answers.last.locator(".text")).to_have_text("you said three after 2")
    assert all(one["audio"]["id"].startswith("audio_") for one in said if one["role"] == "assistant")
    opened.page.get_by_role("button", name="new conversation").click()
    expect(opened.page.locator(".turn")).to_have_count(0)
    opened.ask("four")
    opened.wait(1)
    assert len(opened.asked[3]["messages"]) == 1


def test_self_verification_can_be_turned_off(opened: Opened) -> None:
    opened.page.get_by_text("options").click()
    opened.page.get_by_label("self-verification").uncheck()
    opened.ask("one")
    opened.wait(1)
    assert opened.asked[0]["candidates"] == 1


def test_another_voice(opened: Opened) -> None:
    opened.page.get_by_label("voice").select_option("low")
    opened.ask("one")
    opened.wait(1)
    expect(opened.answers.get_by_role("img")).to_have_attribute(
        "aria-label", f"spectrogram of the answer, {2 * ANSWERED:.1f} seconds"
    )


def test_on_a_phone(browser: Browser, server: Server) -> None:
    opened = Opened(browser, server, PHONE)
    opened.page.get_by_text("options").click()
    opened.ask("what is " + "averyveryverylongword" * 8)
    opened.wait(1)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for button in opened.page.locator("button:visible, .button:visible").all():
        box = button.bounding_box()
        assert box is not None and box["height"] >= 44  # as large as a finger
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    opened.page.get_by_text("options").click()
    box = opened.page.get_by_role("button", name="stop").bounding_box()
    assert box is not None and box["y"] + box["height"] <= PHONE["height"]
    opened.context.close()
    assert opened.errors == []


def test_every_control_is_reached_by_keys_and_has_a_name(opened: Opened) -> None:
    opened.page.get_by_text("options").click()
    opened.page.get_by_role("textbox").focus()
    names: list[str] = []
    for _ in range(4):
        opened.page.keyboard.press("Shift+Tab")
        names.append(opened.page.evaluate("document.activeElement.id"))
    assert names == ["file", "hands-free", "talk", "voice"]
    forward = ["ask", "speak", "verify", "remember", "clear"]  # stop is disabled while nothing runs
    opened.page.get_by_role("textbox").focus()
    seen = []
    for _ in range(len(forward) + 1):
        opened.page.keyboard.press("Tab")
        seen.append(opened.page.evaluate("document.activeElement.id"))
    assert [one for one in seen if one] == forward  # and the summary of the options
    tree = opened.page.locator("body").aria_snapshot()
    assert not [line for line in tree.splitlines() if line.strip() in ("- button", "- textbox", "- checkbox", "- img")]
    for role in ("log", "status", "meter"):
        assert f"- {role}" in tree


def test_a_server_with_a_key_asks_for_it(browser: Browser) -> None:
    with Server(Echo(), SAMPLING, Serving(port=0, rows=4, key="sesame")).background() as server:
        opened = Opened(browser, server, {"width": 760, "height": 900})
        for key in ("wrong", "sesame"):
            opened.page.get_by_label("key", exact=True).fill(key)
            opened.page.get_by_role("button", name="continue").click()
        expect(opened.page.locator("#model")).to_contain_text("echo-1")
        opened.ask("what is two")
        opened.wait(1)
        opened.page.get_by_role("button", name="hands-free").click()
        opened.wait(2)
        opened.context.close()
        assert all("401" in error for error in opened.errors)


# --- the scripts' own arithmetic


def in_page(opened: Opened, script: str, *given: object) -> object:
    """What a script's function returns; it is given the page's modules."""
    body = f"async given => {{ const at = name => import('/page/' + name + '.js'); {script} }}"
    return opened.page.evaluate(body, list(given))


def test_resampling(opened: Opened) -> None:
    wav = np.concatenate([tones(0.3)] * 3)[:14_000]
    script = """
      const { Resampler } = await at("sound"), [wav, size] = given, resampler = new Resampler(48000, 24000), out = [];
      for (let i = 0; i < wav.length; i += size) out.push(...resampler.push(Float32Array.from(wav.slice(i, i + size))));
      return out;
    """
    whole = np.array(in_page(opened, script, wav.tolist(), len(wav)))
    assert np.array_equal(whole, in_page(opened, script, wav.tolist(), 511))
    reference = soxr.resample(wav.astype(np.float64), 48_000, 24_000)[: len(whole)]
    error = (whole - reference)[100:-100]
    assert len(whole) > 6900 and np.square(error).mean() < 1e-3 * np.square(reference).mean()


def test_the_spectrum(opened: Opened) -> None:
    frame = tones(1.0)[:512].astype(np.float64)
    script = "const { power } = await at('spectrogram'); return [...power(Float64Array.from(given[0]))];"
    found = np.array(in_page(opened, script, frame.tolist()))
    assert np.allclose(found, np.abs(np.fft.rfft(frame)) ** 2, rtol=1e-6, atol=1e-9)


def test_a_long_sound_makes_a_picture_of_bounded_width(opened: Opened) -> None:
    script = """
      const { Spectrogram } = await at("spectrogram"), one = new Spectrogram("it"), second = new Int16Array(24000);
      for (let i = 0; i < 24000; i++) second[i] = 20000 * Math.sin(i / 3);
      for (let i = 0; i < 60; i++) one.push(second);
      one.draw();
      return [one.canvas.width, one.columns.length * one.merged];
    """
    width, columns = in_page(opened, script)
    assert width <= 2400 and 5990 <= columns <= 6004


def test_samples_as_base64_and_as_a_wav(opened: Opened) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32767, 40_001)
    script = """
      const { toBase64, fromBase64, wavFile } = await at("sound"), samples = Int16Array.from(given[0]);
      const file = toBase64(await wavFile(samples).arrayBuffer());
      return [[...fromBase64(toBase64(samples))], file, [...fromBase64(toBase64(samples.subarray(7, 9)))]];
    """
    back, file, part = in_page(opened, script, samples.tolist())
    assert back == samples.tolist() and part == samples[7:9].tolist()
    wav, rate = soundfile.read(io.BytesIO(base64.b64decode(file)), dtype="int16")
    assert rate == 24_000 and np.array_equal(wav, samples)
