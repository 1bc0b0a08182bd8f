"""`medsft serve`: models over HTTP."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from medsft.cli.options import (
    DeviceOption,
    PolishOption,
    Precision,
    PrecisionOption,
    QuantizeOption,
    Template,
    TemplateOption,
    num_bits,
)
from medsft.errors import UserError


def serve(
    model: Annotated[
        list[Path],
        typer.Option(
            "--model", help="Model folder, or a run's output folder; again for one beside it on the page."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address; others than this machine's need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8000,
    max_new_tokens: Annotated[
        int, typer.Option("--max_new_tokens", min=1, help="Longest answer that may be asked for, tokens.")
    ] = 1024,
    max_concurrency: Annotated[
        int, typer.Option("--max_concurrency", min=1, help="Answers of a model written side by side.")
    ] = 8,
    max_waiting: Annotated[
        int, typer.Option("--max_waiting", min=1, help="Requests in line behind them; more get a 429.")
    ] = 32,
    prompt_template: TemplateOption = Template.auto,
    postprocess: PolishOption = True,
    quantize: QuantizeOption = None,
    dtype: PrecisionOption = Precision.auto,
    device: DeviceOption = "auto",
) -> None:
    """Answer over HTTP: OpenAI's form at /v1, api.py's form and a chat page at /."""
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"medsft serve needs {', '.join(missing)}, not installed here: pip install 'medsft[serve]'."
        )
    from medsft.inference.responder import open_responder
    from medsft.inference.server.limits import Limits
    from medsft.inference.server.serve import check_port, names_of, read_key
    from medsft.inference.server.serve import serve as answer

    key = read_key(host, os.environ)
    check_port(host, port)
    limits = Limits(max_new_tokens=max_new_tokens, max_rows=max_concurrency, max_waiting=max_waiting)
    responders = {}
    for name, folder in zip(names_of(model), model, strict=True):
        typer.echo(f"loading {folder} …", err=True)
        responders[name] = open_responder(
            folder, prompt_template.value, dtype.value, device, num_bits(quantize), postprocess
        )
        typer.echo(f"{name}: {responders[name].summary}", err=True)
    place = f"[{host}]" if ":" in host else host
    told = f"{', '.join(responders)} at http://{place}:{port}/ (Ctrl-C ends)"
    answer(responders, limits, host, port, key, lambda: typer.echo(told, err=True))
