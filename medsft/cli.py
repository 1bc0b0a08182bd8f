"""`medsft`: every command of the toolkit. Each imports what it needs only when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medsft import exit_codes
from medsft.errors import UserError

app = typer.Typer(
    name="medsft",
    help="Fine-tune ChatGLM-6B on medical knowledge, from data to answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Build instruction data.", no_args_is_help=True)
app.add_typer(data_app, name="data")


class Template(StrEnum):
    """Form of a question; auto: what the model was trained with."""

    auto = "auto"
    none = "none"
    chatglm = "chatglm"
    med_chatglm = "med-chatglm"


class Precision(StrEnum):
    """Number type of the weights in memory."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


ModelOption = Annotated[Path, typer.Option("--model", help="Model folder, or a run's output folder.")]
TemplateOption = Annotated[
    Template,
    typer.Option(
        "--prompt_template", help="How a question is written for the model; auto: as it was trained."
    ),
]
PrecisionOption = Annotated[Precision, typer.Option(help="auto: fp32 on CPU, as stored on a GPU.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto: a GPU if there is one.")]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def train(context: typer.Context) -> None:
    """Train in this process; `medsft train --help` lists the flags. For more GPUs: python -m launcher run."""
    from medsft.train import main as train_main

    raise typer.Exit(train_main(context.args))


@app.command()
def chat(
    model: ModelOption,
    prompt_template: TemplateOption = Template.auto,
    history: Annotated[
        bool | None,
        typer.Option(help="Keep earlier rounds (default: yes, but not in the med-chatglm form)."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max_new_tokens", min=1, help="Longest answer, tokens (default: 512, or half of what fits)."
        ),
    ] = None,
    greedy: Annotated[bool, typer.Option(help="Always the most likely token.")] = False,
    top_p: Annotated[float, typer.Option("--top_p", min=0.0, max=1.0, help="Nucleus of sampling.")] = 0.7,
    temperature: Annotated[float, typer.Option(min=0.01, help="Higher is more varied.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="Makes sampled answers repeatable.")] = None,
    dtype: PrecisionOption = Precision.auto,
    device: DeviceOption = "auto",
) -> None:
    """Talk to a model in the terminal, or pipe questions in, one a line."""
    from medsft.inference.chat import chat as converse
    from medsft.inference.responder import Sampling, open_responder, seed_everything

    sys.stdin.reconfigure(errors="strict")  # a wrong encoding shall be told, not passed on to the model
    if sys.stdin.isatty():
        typer.echo(f"loading {model} …", err=True)
    responder = open_responder(model, prompt_template.value, dtype.value, device)
    seed_everything(seed)
    keep = responder.template != "med-chatglm" if history is None else history
    longest = max_new_tokens or min(512, responder.model.config.max_sequence_length // 2)
    responder.prompt_ids("", (), longest)  # refuses a limit that leaves no room, before anything is typed
    converse(responder, Sampling(longest, greedy, top_p, temperature), keep, sys.stdin)


@app.command()
def compare(
    base: Annotated[Path, typer.Option(help="Model folder before training.")],
    tuned: Annotated[Path, typer.Option(help="Model or run folder after training.")],
    questions: Annotated[Path, typer.Option(help="Instruction file: questions with their answers.")],
    num_questions: Annotated[
        int, typer.Option("--num_questions", min=1, help="How many, from the front.")
    ] = 10,
    min_exact: Annotated[
        float, typer.Option("--min_exact", min=0.0, max=1.0, help="Exit 1 below this share of exact answers.")
    ] = 0.0,
    max_new_tokens: Annotated[
        int, typer.Option("--max_new_tokens", min=1, help="Longest answer, tokens.")
    ] = 128,
    prompt_template: TemplateOption = Template.auto,
    dtype: PrecisionOption = Precision.auto,
    device: DeviceOption = "auto",
) -> None:
    """The same questions to two models, side by side, greedily answered."""
    from rich.console import Console

    from medsft.evaluation.compare import compare_models, comparison_table, exact_share

    comparisons = compare_models(
        base, tuned, questions, num_questions, max_new_tokens, prompt_template.value, dtype.value, device
    )
    Console().print(comparison_table(comparisons))
    share = exact_share(comparisons)
    if share < min_exact:
        typer.echo(f"only {share:.0%} exact answers after training, {min_exact:.0%} were asked for", err=True)
        raise typer.Exit(exit_codes.CRASHED)


@app.command()
def tokenizer(
    train_file: Annotated[list[Path], typer.Option("--train_file", help="Instruction files; repeatable.")],
    output_dir: Annotated[
        Path, typer.Option("--output_dir", help="Folder for ice_text.model and its config.")
    ],
    vocab_size: Annotated[
        int, typer.Option("--vocab_size", help="Ids in all, 344 special ones included.")
    ] = 1500,
) -> None:
    """Train a small SentencePiece tokenizer in the released layout, for toy models."""
    from medsft.chatglm.tokenizer_training import train_tokenizer
    from medsft.data.records import read_files

    examples = read_files(train_file).usable()
    made = train_tokenizer((item.query + item.response for item in examples), output_dir, vocab_size)
    typer.echo(f"{len(made):,} ids, trained on {len(examples):,} examples: {output_dir}")


@app.command()
def init(
    tokenizer: Annotated[Path, typer.Option(help="Folder with ice_text.model and tokenizer_config.json.")],
    output_dir: Annotated[Path, typer.Option("--output_dir", help="New model folder.")],
    preset: Annotated[str, typer.Option(help="Shape of the model; an unknown name lists them.")] = "toy",
    hidden_size: Annotated[
        int | None, typer.Option("--hidden_size", min=1, help="Instead of the preset's.")
    ] = None,
    num_layers: Annotated[
        int | None, typer.Option("--num_layers", min=1, help="Instead of the preset's.")
    ] = None,
    num_attention_heads: Annotated[
        int | None, typer.Option("--num_attention_heads", min=1, help="Instead of the preset's.")
    ] = None,
    inner_hidden_size: Annotated[
        int | None, typer.Option("--inner_hidden_size", min=1, help="Instead of the preset's.")
    ] = None,
    max_sequence_length: Annotated[
        int | None, typer.Option("--max_sequence_length", min=1, help="Positions (default: 2048).")
    ] = None,
    untied: Annotated[bool, typer.Option(help="Give the head weights of its own.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
    dtype: Annotated[
        str, typer.Option(help="Type of the stored weights: float16, bfloat16, float32.")
    ] = "float16",
    max_shard_size: Annotated[str, typer.Option("--max_shard_size", help="Largest weight file.")] = "2GB",
    weights_format: Annotated[
        str, typer.Option("--weights_format", help="bin, as released, or safetensors.")
    ] = "bin",
) -> None:
    """Write a randomly initialised ChatGLM of any size in the released layout."""
    from medsft.chatglm.init import count_parameters, write_random_model

    shape = {
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_attention_heads": num_attention_heads,
        "inner_hidden_size": inner_hidden_size,
        "max_sequence_length": max_sequence_length,
        "tie_word_embeddings": False if untied else None,
    }
    with _progress("writing random weights") as report:
        config = write_random_model(
            output_dir,
            tokenizer,
            preset=preset,
            overrides={name: value for name, value in shape.items() if value is not None},
            seed=seed,
            dtype=dtype,
            shard_size=max_shard_size,
            weights_format=weights_format,
            on_shard=report,
        )
    typer.echo(f"{count_parameters(config):,} parameters: {output_dir}")


@app.command()
def convert(
    source: Annotated[Path, typer.Option("--model", help="Model folder to convert.")],
    output_dir: Annotated[Path, typer.Option("--output_dir", help="New model folder.")],
    vocabulary: Annotated[
        str | None, typer.Option(help="v1.1: drop the 20,000 image tokens of a v0.1 vocabulary.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder to take the tokenizer from; needed with --vocabulary.")
    ] = None,
    weights_format: Annotated[
        str, typer.Option("--weights_format", help="safetensors, or bin as released.")
    ] = "safetensors",
    dtype: Annotated[str | None, typer.Option(help="float16, bfloat16, float32; default: as stored.")] = None,
    max_shard_size: Annotated[str, typer.Option("--max_shard_size", help="Largest weight file.")] = "2GB",
) -> None:
    """Rewrite a model folder: another vocabulary, file format or number type."""
    from medsft.chatglm.weights import convert as convert_folder

    with _progress("converting") as report:
        convert_folder(
            source,
            output_dir,
            vocabulary=vocabulary,
            weights_format=weights_format,
            tokenizer_dir=tokenizer,
            dtype=dtype,
            shard_size=max_shard_size,
            progress=report,
        )
    typer.echo(f"converted: {output_dir}")


@data_app.command()
def build(
    graph: Annotated[list[Path], typer.Option(help="Knowledge graph files (.jsonl); repeatable.")],
    output: Annotated[Path, typer.Option(help="Instruction file to write (.jsonl).")],
    kinds: Annotated[str, typer.Option(help="Kinds of questions, with commas: single,several,reverse.")] = "",
    num_phrasings: Annotated[int, typer.Option("--num_phrasings", min=1, help="Phrasings of each fact.")] = 2,
    max_pairs: Annotated[
        int | None, typer.Option("--max_pairs", min=1, help="At most so many pairs.")
    ] = None,
    max_bad_share: Annotated[
        float, typer.Option("--max_bad_share", min=0.0, max=1.0, help="Stop above this share of bad records.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Decides phrasings and order.")] = 0,
) -> None:
    """Turn a knowledge graph into questions and answers by templates."""
    from medsft.knowledge.build import build_pairs
    from medsft.knowledge.pairs import KINDS

    chosen = tuple(kind.strip() for kind in kinds.split(",")) if kinds else KINDS
    summary = build_pairs(graph, output, seed, chosen, num_phrasings, max_pairs, max_bad_share)
    typer.echo(f"{summary.describe()}: {output}")


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, moved by calls with what is done and what there is in all."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def main() -> None:
    """Entry point of the `medsft` command: a user's error is one paragraph and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"medsft: error: {error}", file=sys.stderr)
        sys.exit(exit_codes.USER_ERROR)


if __name__ == "__main__":
    main()
