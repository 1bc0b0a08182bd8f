"""`medsft tokenizer`, `init`, `convert`, `export`: model folders made and rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsft.cli.options import ModelOption, Quantization, StoredType, num_bits
from medsft.cli.progress import byte_progress, progress


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
    with progress("writing random weights") as report:
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


def convert(
    model: ModelOption,
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
    quantize: Annotated[
        Quantization | None,
        typer.Option(help="8 or 4 bits for the weights of the blocks, as in the int8 and int4 releases."),
    ] = None,
    max_shard_size: Annotated[str, typer.Option("--max_shard_size", help="Largest weight file.")] = "2GB",
) -> None:
    """Rewrite a model folder: another vocabulary, file format or number type, or quantised."""
    from medsft.chatglm.weights import convert as convert_folder
    from medsft.run_folder import model_folder

    with progress("converting") as report:
        written = convert_folder(
            model_folder(model),
            output_dir,
            vocabulary=vocabulary,
            weights_format=weights_format,
            tokenizer_dir=tokenizer,
            dtype=dtype,
            quantize=num_bits(quantize),
            shard_size=max_shard_size,
            progress=report,
        )
    typer.echo(f"converted, {written.num_bytes / 1e9:,.2f} GB: {output_dir}")


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT_OR_RUN", help="A checkpoint, or a run: then its newest one.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="New model folder.")],
    dtype: Annotated[
        StoredType,
        typer.Option(help="Type of the stored weights; the original ChatGLM code computes in fp16."),
    ] = StoredType.bf16,
    max_shard_size: Annotated[str, typer.Option("--max_shard_size", help="Largest weight file.")] = "2GB",
    step: Annotated[int | None, typer.Option(help="Of a run, the checkpoint of this step.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the checkpoint with its SHA-256 first.")
    ] = True,
) -> None:
    """Write a checkpoint's model as a folder in the released layout, on any machine."""
    from medsft.chatglm.weights import parse_size
    from medsft.chatglm.weights.load import parse_dtype
    from medsft.checkpoint.reader import open_checkpoint
    from medsft.checkpoint.release import check_free, export_checkpoint
    from medsft.checkpoint.survey import checkpoint_folder
    from medsft.checkpoint.verify import verify as verify_files

    max_shard_bytes = parse_size(max_shard_size)
    check_free(output)  # found now, not after all files are read
    opened = open_checkpoint(checkpoint_folder(checkpoint, step))
    if verify:
        with byte_progress("verifying", opened.manifest.num_bytes()) as report_bytes:
            verify_files(opened.folder, report_bytes)
    with progress("writing the model") as report:
        export_checkpoint(opened, output, parse_dtype(dtype.value), max_shard_bytes, report)
    typer.echo(f"step {opened.manifest.step:,} as {dtype.value}: {output}")
