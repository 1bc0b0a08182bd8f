"""`medsft eval`: loss, perplexity and the scores of generated answers for one model and some files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medsft.chatglm.weights import check_release
from medsft.data.progress import Steps, silent_steps
from medsft.errors import UserError
from medsft.evaluation.answer_loss import answer_loss
from medsft.evaluation.predict import (
    answer_all,
    answers_key,
    remove_parts,
    weights_identity,
    write_predictions,
)
from medsft.evaluation.question_set import read_answered
from medsft.evaluation.ranks import evaluation_world
from medsft.evaluation.scores import SCORE_NAMES, Scores, mean_scores
from medsft.files import write_json
from medsft.inference.responder import open_responder
from medsft.inference.sampling import Sampling
from medsft.run_folder import model_folder, writing

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_model` found.

    loss: mean over supervised tokens, nats; perplexity: exp(loss); None where they are no finite
    numbers. scores: None when no answers were generated.
    """

    model: str
    num_examples: int
    num_targets: int
    loss: float | None
    perplexity: float | None
    scores: Scores | None


def evaluate_model(
    model: Path,
    files: Sequence[Path],
    output_dir: Path,
    num_examples: int | None,
    generate: bool,
    max_source_length: int,
    max_target_length: int,
    batch_size: int,
    template: str,
    dtype: str,
    device: str,
    quantize: int | None,
    progress: Steps,
) -> Evaluation | None:
    """Evaluates on all ranks; rank 0 writes `evaluation.json` and `generated_predictions.txt` and returns.

    Other ranks return None. Raises `UserError` for files without usable questions, a model that is none, a
    folder that cannot be written.
    """
    questions = read_answered(files)[:num_examples]
    examples = [question.example() for question in questions]
    check_release(model_folder(model))  # before a folder is made in one that is none
    with evaluation_world(device) as world:
        with writing(output_dir):
            output_dir.mkdir(parents=True, exist_ok=True)
        place = device if world.size == 1 else str(world.device)
        responder = open_responder(model, template, dtype, place, quantize)
        longest = responder.model.config.max_sequence_length
        if max_source_length + max_target_length > longest:
            raise UserError(
                f"--max_source_length {max_source_length} and --max_target_length {max_target_length} make "
                f"more than the {longest} tokens that this model reads. Lower one of them."
            )
        limits = (max_source_length, max_target_length)
        steps = progress if world.is_main else silent_steps  # one bar, not one a rank
        with steps("loss") as shown:
            loss = answer_loss(responder, examples, world, *limits, batch_size, shown)
        scores = None
        if generate:
            sampling = Sampling(max_new_tokens=max_target_length, greedy=True)
            held = f"{responder.model.dtype} {responder.model.config.quantization_bit}"
            identity = f"{weights_identity(model_folder(model))} {held}"
            key = answers_key(identity, responder.template, examples, sampling)
            with steps("answering") as shown:
                answers = answer_all(responder, examples, sampling, output_dir, key, world, batch_size, shown)
        if not world.is_main:
            return None
        if generate:
            scores = mean_scores(answers, questions)
            with writing(output_dir):
                write_predictions(output_dir / "generated_predictions.txt", examples, answers)
        finite = [value if math.isfinite(value) else None for value in (loss.loss, loss.perplexity)]
        found = Evaluation(str(model), len(examples), loss.num_targets, *finite, scores)
        with writing(output_dir):
            write_json(output_dir / "evaluation.json", asdict(found))
            remove_parts(output_dir)
        return found


def evaluation_table(found: Evaluation) -> Table:
    """Loss, perplexity and scores, a line each."""
    from rich.table import Table

    title = f"{found.num_examples:,} examples, {found.num_targets:,} supervised tokens"
    table = Table(title=title, min_width=len(title))
    table.add_column("measure 指标")
    table.add_column("value 数值", justify="right")
    table.add_row("loss 损失 (nats)", "—" if found.loss is None else f"{found.loss:.4f}")
    table.add_row("perplexity 困惑度", "—" if found.perplexity is None else f"{found.perplexity:,.2f}")
    for name, value in asdict(found.scores).items() if found.scores else ():
        if value is not None:
            table.add_row(SCORE_NAMES[name], f"{value:.2f}")
    return table
