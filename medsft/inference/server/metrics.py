"""Figures of the server in Prometheus' form."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from medsft.inference.server.generation import Served


class Metrics:
    """Counts what was asked and answered; one set of figures for each server."""

    def __init__(self, models: Sequence[Served]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "medsft_requests",
            "Requests for an answer, by outcome",
            ["model", "outcome"],
            registry=self._registry,
        )
        self.tokens = Counter(
            "medsft_generated_tokens", "Tokens of answers", ["model"], registry=self._registry
        )
        self.prompt_tokens = Counter(
            "medsft_prompt_tokens", "Tokens of prompts", ["model"], registry=self._registry
        )
        self.first_text_s = Histogram(
            "medsft_first_text_seconds",
            "From the place in line to the first text of an answer",
            ["model"],
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=self._registry,
        )
        running = Gauge("medsft_running", "Answers in the making", ["model"], registry=self._registry)
        waiting = Gauge("medsft_waiting", "Requests in line", ["model"], registry=self._registry)
        for served in models:
            engine = served.engine
            running.labels(served.name).set_function(lambda engine=engine: engine.num_running)
            waiting.labels(served.name).set_function(lambda engine=engine: engine.num_waiting)

    def text(self) -> bytes:
        """All figures, as /metrics tells them."""
        return generate_latest(self._registry)
