"""`medsft data generate`: pairs written by a language model from a graph's facts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsft.cli.data.options import GraphOption, MaxBadShareOption, SeedOption, listed


def generate(
    graph: GraphOption,
    output: Annotated[Path, typer.Option(help="Instruction file to write (.jsonl).")],
    base_url: Annotated[str, typer.Option("--base_url", "--base-url", help="OpenAI-compatible endpoint.")],
    model: Annotated[str, typer.Option(help="The model's name there.")],
    forms: Annotated[str, typer.Option(help="Prompt forms, with commas (default: all).")] = "",
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts of your own, in the form of medsft/knowledge/llm/prompts.yaml."),
    ] = None,
    num_pairs: Annotated[int, typer.Option("--num_pairs", min=1, help="Pairs in one request.")] = 4,
    max_entities: Annotated[
        int | None, typer.Option("--max_entities", min=1, help="Only the first so many entities.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 4,
    requests_per_minute: Annotated[
        float, typer.Option("--requests_per_minute", min=0.1, help="Rate limit.")
    ] = 60.0,
    max_retries: Annotated[int, typer.Option("--max_retries", min=0, help="Of a failed request.")] = 5,
    timeout_s: Annotated[float, typer.Option("--timeout_s", min=1.0, help="Seconds for one reply.")] = 120.0,
    temperature: Annotated[float, typer.Option(min=0.0, help="Higher is more varied.")] = 0.7,
    price_in: Annotated[
        float | None, typer.Option("--price_in", min=0.0, help="Price of a million tokens read.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option("--price_out", min=0.0, help="Price of a million tokens written.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Replies already paid for (default: OUTPUT with the ending .replies).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="Only estimate.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before sending.")] = False,
    max_bad_share: MaxBadShareOption = 0.01,
    seed: SeedOption = 0,
) -> None:
    """Have a language model write pairs from a graph's facts; the key comes from MEDSFT_LLM_KEY."""
    from dataclasses import replace

    from medsft.cli.progress import progress
    from medsft.data.files import expand_files
    from medsft.data.writing import check_output
    from medsft.knowledge.graph import read_graph
    from medsft.knowledge.llm.cache import ReplyCache
    from medsft.knowledge.llm.client import Endpoint, api_key, without_secrets
    from medsft.knowledge.llm.generate import (
        RequestSettings,
        ask_missing,
        collect,
        estimate,
        make_tasks,
        write_generated,
    )
    from medsft.knowledge.llm.prompts import DEFAULT_PROMPTS, load_prompts
    from medsft.knowledge.templates import load_templates

    check_output(output, expand_files(graph))
    read = read_graph(graph, max_bad_share)
    read = replace(read, entities=read.entities[:max_entities])
    prompts_file = prompts or DEFAULT_PROMPTS
    chosen = load_prompts(prompts_file).chosen(listed(forms))
    asked = RequestSettings(model, num_pairs, temperature, seed)
    endpoint = Endpoint(base_url, concurrency, requests_per_minute, max_retries, timeout_s)
    prices = None if price_in is None or price_out is None else (price_in, price_out)
    tasks = make_tasks(read, chosen, asked)
    replies = ReplyCache(cache or output.with_suffix(".replies"))
    try:
        expected = estimate(tasks, replies, asked, endpoint, prices)
        typer.echo(expected.describe())
        if dry_run:
            return
        if expected.num_requests:
            key = api_key()
            if not yes:
                typer.confirm("Send them?", abort=True)
            with progress("asking") as report:
                ask_missing(tasks, replies, endpoint, key, report)
        pairs, summary = collect(tasks, replies, read, load_templates())
    finally:
        replies.close()
    settings = {
        "prompt forms": ", ".join(chosen.forms),
        "endpoint": without_secrets(base_url),
        "largest number of entities": "no limit" if max_entities is None else max_entities,
    }
    write_generated(output, pairs, summary, asked, graph, prompts_file, settings)
    typer.echo(f"{summary.describe()}: {output}")
