"""The server's addresses."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from medsft.errors import UserError
from medsft.inference.server import forms
from medsft.inference.server.engine import Busy, Stopped
from medsft.inference.server.generation import Generation, Served, begin
from medsft.inference.server.limits import Guard, Limits, error_response
from medsft.inference.server.metrics import Metrics

_PAGE_HEADERS = {
    # The page is one file: nothing is fetched from elsewhere, nobody else may frame it.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_CLIENT_LEFT = 499  # nginx's number; nobody sees it but the metrics


class _AnswerStream(StreamingResponse):
    """Server-sent events of one answer; its generation ends with the response, however that ends."""

    def __init__(self, events: AsyncIterator[str], generation: Generation) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()


def make_app(models: Sequence[Served], limits: Limits, api_key: str | None = None) -> ASGIApp:
    """The application for these models; requests that name none go to the first."""
    app = FastAPI(title="medsft", docs_url=None, redoc_url=None, openapi_url=None)
    by_name = {served.name: served for served in models}
    assert len(by_name) == len(models), "names of models must differ"
    metrics = Metrics(models)
    created = int(time.time())
    page = files("medsft.inference.server").joinpath("page.html").read_text(encoding="utf-8")

    @app.exception_handler(RequestValidationError)
    async def not_understood(request: Request, error: RequestValidationError) -> Response:
        places = [(".".join(map(str, item["loc"][1:])), item["msg"]) for item in error.errors()]
        if not all(place for place, _ in places):  # also where curl calls the body a form
            return error_response(400, "send a JSON object, with Content-Type: application/json")
        return error_response(400, "; ".join(f"{place}: {fault}" for place, fault in places[:5]))

    @app.exception_handler(UserError)
    async def refused(request: Request, error: UserError) -> Response:
        return error_response(400, str(error))

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        message = f"{limits.max_waiting} requests are waiting already; try again later"
        return error_response(429, message, {"Retry-After": "5"})

    @app.exception_handler(Stopped)
    async def stopped(request: Request, error: Stopped) -> Response:
        return error_response(503, str(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return error_response(error.status_code, error.detail, error.headers)

    def served_as(name: str | None) -> Served:
        if name is not None and name not in by_name:
            raise HTTPException(404, f"the model {name!r} is not served; there are {', '.join(by_name)}")
        return by_name[name] if name is not None else models[0]

    async def started(
        request: Request, served: Served, asked: forms.ChatRequest | forms.OldRequest
    ) -> Generation:
        client = request.client.host if request.client else ""
        sampling = asked.sampling(limits, served.responder.model.config.max_sequence_length)
        try:
            generation = await begin(served, client, *asked.conversation(), sampling, asked.stops())
        except (Busy, UserError) as error:
            outcome = "busy" if isinstance(error, Busy) else "refused"
            metrics.requests.labels(served.name, outcome).inc()
            raise
        metrics.prompt_tokens.labels(served.name).inc(generation.num_prompt_tokens)
        return generation

    async def told(served: Served, generation: Generation) -> AsyncIterator[str]:
        """The pieces of an answer, counted; the generation ends with them."""
        begin_s, outcome, is_first = time.monotonic(), "left", True
        try:
            async for piece in generation.pieces():
                if is_first:
                    metrics.first_text_s.labels(served.name).observe(time.monotonic() - begin_s)
                is_first = False
                yield piece
            outcome = generation.finish or ""
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception:
            outcome = "failed"
            raise
        finally:
            generation.cancel()
            metrics.tokens.labels(served.name).inc(generation.num_tokens)
            metrics.requests.labels(served.name, outcome).inc()

    async def whole(request: Request, served: Served, generation: Generation) -> str:
        """All of an answer. Raises `HTTPException` when it failed, and when the client has left meanwhile."""

        async def collect() -> str:
            return "".join([piece async for piece in told(served, generation)])

        answer = asyncio.create_task(collect())
        left = asyncio.create_task(request.receive())  # after the body, only that the client has left
        try:
            await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise HTTPException(_CLIENT_LEFT, "the client has left")
            if error := answer.exception():
                raise HTTPException(500, failed(error)) from error
            return answer.result()
        finally:
            for task in (answer, left):
                task.cancel()
            generation.cancel()

    def failed(error: BaseException) -> str:
        return f"the answer could not be generated: {type(error).__name__}"

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request, asked: forms.ChatRequest) -> Response:
        served = served_as(asked.model)
        asked.check(limits)
        generation = await started(request, served, asked)
        ident, now = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        if asked.stream:
            with_usage = asked.stream_options is not None and asked.stream_options.include_usage
            events = streamed(served, generation, ident, now, with_usage)
            return _AnswerStream(events, generation)
        text = await whole(request, served, generation)
        usage = forms.usage(generation.num_prompt_tokens, generation.num_tokens)
        content = forms.completion(ident, now, served.name, text, generation.finish, usage)
        return JSONResponse({**content, "history_cut": generation.was_cut})

    async def streamed(
        served: Served, generation: Generation, ident: str, now: int, with_usage: bool
    ) -> AsyncIterator[str]:
        def event(content: object) -> str:
            return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"

        opening = forms.chunk(ident, now, served.name, {"role": "assistant", "content": ""})
        yield event({**opening, "history_cut": generation.was_cut})
        try:
            async for piece in told(served, generation):
                yield event(forms.chunk(ident, now, served.name, {"content": piece}))
        except Exception as error:
            yield event({"error": {"message": failed(error), "type": "server_error"}})
            return
        yield event(forms.chunk(ident, now, served.name, {}, generation.finish))
        if with_usage:
            usage = forms.usage(generation.num_prompt_tokens, generation.num_tokens)
            yield event(forms.chunk(ident, now, served.name, None, usage=usage))
        yield "data: [DONE]\n\n"

    @app.post("/")
    async def old_form(request: Request, asked: forms.OldRequest) -> Response:
        served = models[0]
        if 2 * len(asked.rounds) > limits.max_messages:
            raise UserError(f"history: at most {limits.max_messages // 2} rounds; leave out the oldest.")
        generation = await started(request, served, asked)
        text = await whole(request, served, generation)
        return JSONResponse(forms.old_answer(asked.prompt, asked.rounds, text))

    @app.head("/")
    @app.get("/")
    async def chat_page() -> Response:
        return HTMLResponse(page, headers=_PAGE_HEADERS)

    @app.get("/v1/models")
    async def list_models() -> Response:
        shared = {"object": "model", "created": created, "owned_by": "medsft"}
        entries = [
            {"id": name, **shared, "keeps_history": served.responder.keeps_history}
            for name, served in by_name.items()
        ]
        return JSONResponse({"object": "list", "data": entries})

    @app.head("/healthz")
    @app.get("/healthz")
    async def healthz() -> Response:
        alive = all(served.engine.is_alive for served in models)
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    @app.get("/metrics")
    async def all_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    return Guard(app, limits, api_key)
