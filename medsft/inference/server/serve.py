"""From the command line to a server that listens."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from medsft.errors import UserError
from medsft.inference.responder import Responder
from medsft.inference.server.app import make_app
from medsft.inference.server.connection import Connection
from medsft.inference.server.engine import Engine
from medsft.inference.server.generation import Served
from medsft.inference.server.limits import Limits, is_loopback

KEY_VARIABLE = "MEDSFT_SERVE_KEY"


def read_key(host: str, environment: Mapping[str, str]) -> str | None:
    """The key that clients must send, from the environment.

    Raises UserError where there is none and other machines could ask, and for one that a header cannot hold.
    """
    key = environment.get(KEY_VARIABLE) or None
    if key is None and not is_loopback(host):
        raise UserError(
            f"--host {host} can be reached from other machines, so clients have to show a key. Set "
            f"{KEY_VARIABLE} to a long random text (openssl rand -hex 32), or listen on 127.0.0.1."
        )
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{KEY_VARIABLE} may hold letters, digits and ASCII signs only, and no blank.")
    return key


def names_of(folders: Sequence[Path]) -> list[str]:
    """What clients call the models: the folders' last names, told apart where they are the same."""
    own = [folder.resolve().name for folder in folders]
    names: list[str] = []
    for place, name in enumerate(own):
        numbered = (f"{name}-{number}" for number in count(2))
        free = (each for each in numbered if each not in own and each not in names)
        names.append(next(free) if name in own[:place] else name)
    return names


def check_port(host: str, port: int) -> None:
    """Raises UserError, before any model is read, where the address cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"--host {host} --port {port} cannot be listened on ({error.strerror}). Give another --port, "
                "or end what listens there."
            ) from error


def serving(responders: Mapping[str, Responder], limits: Limits) -> list[Served]:
    """Starts the thread of each model."""
    return [
        Served(name, responder, Engine(responder.model, limits.max_rows, limits.max_waiting))
        for name, responder in responders.items()
    ]


class _Server(uvicorn.Server):
    """uvicorn's, which calls `on_listening` as soon as it can be connected to."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn has it."""
        await super().startup(sockets)
        self._on_listening()


def make_server(
    app: ASGIApp, host: str, port: int, limits: Limits, on_listening: Callable[[], None] = lambda: None
) -> uvicorn.Server:
    """A server that is not running yet."""
    config = uvicorn.Config(
        app,
        http=partial(Connection, limits.read_s, limits.write_s),
        host=host,
        port=port,
        log_level="warning",
        lifespan="off",
        limit_concurrency=limits.max_connections,
        timeout_graceful_shutdown=5,
    )
    return _Server(config, on_listening)


def serve(
    responders: Mapping[str, Responder],
    limits: Limits,
    host: str,
    port: int,
    key: str | None,
    on_listening: Callable[[], None],
) -> None:
    """Answers until SIGINT or SIGTERM."""
    models = serving(responders, limits)
    try:
        make_server(make_app(models, limits, key), host, port, limits, on_listening).run()
    finally:
        for served in models:
            served.engine.close()
