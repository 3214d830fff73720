"""Figures of the server for Prometheus: requests, queue, latency of the first sound, real-time factor."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from speechgpt.serve.work import Work

KNOWN = "/ /model /answer /transcribe /chat /say /health /metrics /v1/models /v1/audio/transcriptions".split() + [
    "/v1/audio/speech",
    "/v1/chat/completions",
    "/v1/realtime",
]


class Metrics:
    """The figures of one server."""

    def __init__(self, work: Work) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "speechgpt_requests", "Requests by path and status of HTTP", ["path", "status"], registry=self.registry
        )
        self._first_text = Histogram(
            "speechgpt_first_text_seconds",
            "From the whole request to the first text of its answer",
            buckets=(0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self._first_audio = Histogram(
            "speechgpt_first_audio_seconds",
            "From the whole request to the first sound of its answer",
            buckets=(0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self._factor = Histogram(
            "speechgpt_real_time_factor",
            "Seconds that an answer took, for each second of its sound",
            buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=self.registry,
        )
        for name, what, value in (
            ("speechgpt_running", "Requests that ask the model", lambda: work.running),
            ("speechgpt_queued", "Requests that wait for these", lambda: work.queued),
        ):
            Gauge(name, what, registry=self.registry).set_function(value)

    def answered(self, path: str, status: int) -> None:
        """Count a request. A path that does not exist is counted as `other`, so that there are few of them."""
        self._requests.labels(path if path in KNOWN else "other", str(status)).inc()

    def timer(self) -> AnswerTimer:
        """For one answer."""
        return AnswerTimer(self)

    def text(self) -> str:
        """The figures in Prometheus' text format."""
        return generate_latest(self.registry).decode()


class AnswerTimer:
    """Times one answer, from when it is made."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._begun = metrics, time.monotonic()
        self._text = self._audio = False
        self._sound = 0.0

    def gained(self, text: bool, seconds: float) -> None:
        """Note a piece. text: whether it has text. seconds: of its sound."""
        now = time.monotonic() - self._begun
        if text and not self._text:
            self._text = True
            self._metrics._first_text.observe(now)
        if seconds and not self._audio:
            self._audio = True
            self._metrics._first_audio.observe(now)
        self._sound += seconds

    def ended(self) -> None:
        """Note the end of the answer."""
        if self._sound:
            self._metrics._factor.observe((time.monotonic() - self._begun) / self._sound)
