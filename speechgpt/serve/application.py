"""The server: a model behind HTTP and WebSocket, as a Starlette application that uvicorn runs."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from speechgpt.answers import SpeechModel
from speechgpt.sampling import Sampling
from speechgpt.serve import page_files, simple_api
from speechgpt.serve.connection import Connection
from speechgpt.serve.errors import ApiError
from speechgpt.serve.gate import LOCAL_NAMES, MAX_BODY, Access, Gate
from speechgpt.serve.metrics import Metrics
from speechgpt.serve.openai import api as openai_api
from speechgpt.serve.openai.realtime import realtime
from speechgpt.serve.service import Service
from speechgpt.serve.work import Work

STOPPING = 120  # seconds for which running requests may go on when the server is stopped
ROUTES: dict[str, tuple[str, Any]] = {
    "/": ("GET", page_files.page),
    "/model": ("GET", simple_api.facts),
    "/answer": ("POST", simple_api.answer),
    "/transcribe": ("POST", simple_api.transcribe),
    "/chat": ("POST", simple_api.chat),
    "/say": ("POST", simple_api.say),
    "/v1/audio/transcriptions": ("POST", openai_api.transcriptions),
    "/v1/audio/speech": ("POST", openai_api.speech),
    "/v1/chat/completions": ("POST", openai_api.chat_completions),
}


def application(service: Service, access: Access) -> ASGIApp:
    """The routes behind the gate."""

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(_: Request) -> Response:
        return JSONResponse(openai_api.listed_models(service))

    async def one_model(request: Request) -> Response:
        found = openai_api.listed_models(service)["data"][0]
        if request.path_params["name"] != found["id"]:
            raise ApiError(404, f"there is no model {request.path_params['name']!r}", "model_not_found")
        return JSONResponse(found)

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    others = {
        "/page/{name}": page_files.page_file, "/health": health, "/metrics": metrics, "/v1/models": models,
        "/v1/models/{name}": one_model,
    }  # fmt: skip
    table = ROUTES | {path: ("GET", asked) for path, asked in others.items()}
    routes: list[Any] = [Route(path, asked, methods=[method]) for path, (method, asked) in table.items()]
    app = Starlette(routes=[*routes, WebSocketRoute("/v1/realtime", realtime)])
    app.router.redirect_slashes = False
    app.state.service = service
    methods = {path: method for path, (method, _) in table.items()}
    app.router.default = _not_found(methods)
    return Gate(_raising(app, methods), access, service.metrics)


def _raising(app: Starlette, methods: dict[str, str]) -> ASGIApp:
    """The router alone: the gate makes replies of errors, Starlette would make pages of them."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = app
        path = scope["path"]
        if scope["type"] == "http" and path in methods and _as_get(scope["method"]) != methods[path]:
            allowed = "GET, HEAD" if methods[path] == "GET" else methods[path]
            raise ApiError(
                405, f"{scope['method']} {path} is not supported; allowed: {allowed}", headers={"Allow": allowed}
            )
        await app.router(scope, receive, send)

    return call


def _as_get(method: str) -> str:
    """The method whose answer is made: HEAD asks for the header of GET's, and the server leaves its body out."""
    return "GET" if method == "HEAD" else method


def _not_found(methods: dict[str, str]) -> ASGIApp:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        asked = _as_get(scope["method"])
        if asked not in ("GET", "POST"):
            raise ApiError(405, f"{scope['method']} is not supported", headers={"Allow": "GET, HEAD, POST"})
        paths = " or ".join(path for path, method in methods.items() if method == asked)
        verb = "POST to" if scope["method"] == "POST" else "GET"
        raise ApiError(404, f"there is no {scope['path']}; {verb} {paths}")

    return refuse


@dataclass(frozen=True)
class Serving:
    """How a model is served."""

    host: str = "127.0.0.1"
    """The address to listen on: 127.0.0.1 is reached from this machine alone, 0.0.0.0 from the whole network."""
    port: int = 8010
    """0 takes a free one."""
    key: str = ""
    """What clients send as `Authorization: Bearer KEY`."""
    origins: tuple[str, ...] = ()
    """Other sites whose pages may use the server."""
    rows: int = 16
    """Answers that are made at once."""
    waiting: int = 64
    """Requests that may wait for these."""


class Server(uvicorn.Server):
    """A model at a port.

    service: what the routes share. address: host and port.
    """

    def __init__(self, model: SpeechModel, sampling: Sampling, serving: Serving = Serving()) -> None:
        """Listens at once; requests are answered while `run` or `background` runs.

        Raises:
            OSError: the port is in use, or the address is not this machine's.
        """
        work = Work(model, serving.rows, serving.waiting)
        self.service = Service(model, sampling, work, Metrics(work))
        family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
        self._socket = socket.create_server((serving.host, serving.port), family=family, backlog=1024)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        access = Access(self.address[0] in LOCAL_NAMES, serving.key, serving.origins)
        super().__init__(
            uvicorn.Config(
                application(self.service, access),
                http=Connection,
                lifespan="off",
                log_level="error",
                access_log=False,
                server_header=False,
                ws_max_size=MAX_BODY,
                timeout_graceful_shutdown=STOPPING,
            )
        )

    def close(self) -> None:
        """Listen no longer, for a server that never ran."""
        self._socket.close()

    def run_until_stopped(self) -> None:
        """Serve until Ctrl-C or SIGTERM; then running requests go on, and others are refused."""
        self.run(sockets=[self._socket])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for a signal, in the thread of the loop. A second Ctrl-C does not wait for what runs."""
        self.service.work.close()
        self.force_exit = self.force_exit or (self.should_exit and sig == signal.SIGINT)
        self.should_exit = True

    @contextmanager
    def background(self) -> Iterator[Server]:
        """Serve in a thread while the context lasts."""
        thread = threading.Thread(target=self.run_until_stopped, name="server", daemon=True)
        thread.start()
        while not self.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield self
        finally:
            self.should_exit = True
            thread.join()
