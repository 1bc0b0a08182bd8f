"""Questions in, answers out: prompt template, encoding and generation in one place."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
    set_seed,
)
from transformers.generation.streamers import BaseStreamer

from medsft.chatglm import ChatGLMForConditionalGeneration, ChatGLMTokenizer
from medsft.chatglm.base import open_tokenizer
from medsft.chatglm.weights import load_model
from medsft.data.encode import encode_prompt
from medsft.errors import UserError
from medsft.inference.postprocess import postprocess, postprocess_stream
from medsft.provenance import trained_template
from medsft.run_folder import model_folder

History = tuple[tuple[str, str], ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are the release's.

    max_new_tokens: longest answer, in tokens. greedy: always the most likely token; the next two then have
    no effect.
    """

    max_new_tokens: int = 512
    greedy: bool = False
    top_p: float = 0.7
    temperature: float = 0.95

    def arguments(self) -> dict[str, Any]:
        """Arguments of transformers' `generate`."""
        if self.greedy:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": True,
            "top_k": 0,
            "top_p": self.top_p,
            "temperature": self.temperature,
        }


class _Stop(StoppingCriteria):
    """Ends a generation that runs in another thread."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.asked.is_set(), device=input_ids.device)


class _TokenQueue(BaseStreamer):
    """Token ids of one answer, handed from the generating thread to the reader; None at the end."""

    def __init__(self) -> None:
        self.ids: queue.Queue[int | None] = queue.Queue()
        self._in_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then the new tokens as they come."""
        if self._in_prompt:
            self._in_prompt = False
            return
        for token in value.flatten().tolist():
            self.ids.put(token)

    def end(self) -> None:
        """The answer is complete, or has failed."""
        self.ids.put(None)


class Responder:
    """A model, its tokenizer and the form in which it was taught questions."""

    def __init__(
        self, model: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer, template: str
    ) -> None:
        config = model.config
        # Stored defaults would be mixed into every call; here `Sampling` alone decides.
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
        self.model = model
        self.tokenizer = tokenizer
        self.template = template

    def prompt_ids(self, query: str, history: History, max_new_tokens: int) -> tuple[list[int], bool]:
        """Ids of the prompt with `[gMASK] <sop>`, and whether old rounds had to go to leave room to answer.

        What users type never becomes a control token.
        """
        room = self.model.config.max_sequence_length - max_new_tokens - 2
        if room < 1:
            raise UserError(
                f"--max_new_tokens {max_new_tokens} leaves no room for the question in the model's "
                f"{self.model.config.max_sequence_length} positions; give a smaller number."
            )
        ids, cut = encode_prompt(query, history, self.tokenizer, room, self.template)
        return [*ids, self.tokenizer.gmask_token_id, self.tokenizer.bos_token_id], cut

    @torch.inference_mode()
    def answers(
        self, queries: Sequence[tuple[str, History]], sampling: Sampling, batch_size: int = 8
    ) -> list[str]:
        """One answer for each (question, earlier rounds), in batches padded on the left, post-processed."""
        results: list[str] = []
        for start in range(0, len(queries), batch_size):
            rows = [
                self.prompt_ids(query, history, sampling.max_new_tokens)[0]
                for query, history in queries[start : start + batch_size]
            ]
            width = max(map(len, rows))
            pad = self.tokenizer.pad_token_id
            input_ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            output = self.model.generate(
                input_ids=input_ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                **sampling.arguments(),
            )
            results += [
                postprocess(self.tokenizer.decode(row, skip_special_tokens=True)) for row in output[:, width:]
            ]
        return results

    def stream(self, query: str, history: History, sampling: Sampling) -> Iterator[str]:
        """Pieces of one answer as they are generated; they add up to the post-processed answer.

        Closing the iterator ends the generation.
        """
        ids, was_cut = self.prompt_ids(query, history, sampling.max_new_tokens)
        if was_cut:
            logger.warning("the conversation is too long for the model: its oldest part is left out")
        tokens, stop = _TokenQueue(), _Stop()
        failure: list[BaseException] = []

        def generate() -> None:
            try:
                input_ids = torch.tensor([ids], device=self.model.device)
                with torch.inference_mode():
                    self.model.generate(
                        input_ids=input_ids,
                        attention_mask=torch.ones_like(input_ids),
                        streamer=tokens,
                        stopping_criteria=StoppingCriteriaList([stop]),
                        **sampling.arguments(),
                    )
            except BaseException as error:
                failure.append(error)
            finally:
                tokens.end()

        worker = threading.Thread(target=generate, daemon=True)
        worker.start()
        try:
            yield from postprocess_stream(self._pieces(iter(tokens.ids.get, None)))
        finally:
            stop.asked.set()
            worker.join()
        if failure:
            raise failure[0]

    def _pieces(self, tokens: Iterator[int]) -> Iterator[str]:
        """Text that each token adds. All tokens are decoded each time: a piece means little by itself."""
        ids: list[int] = []
        shown = 0
        text = ""
        for token in tokens:
            ids.append(token)
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            # A character that is spelled in bytes is complete only with its last byte.
            if len(text) > shown and not text.endswith("\ufffd"):
                yield text[shown:]
                shown = len(text)
        if len(text) > shown:
            yield text[shown:]


def open_responder(
    folder: Path, template: str = "auto", dtype: str = "auto", device: str = "auto"
) -> Responder:
    """Loads a model folder (ours, the release, Med-ChatGLM) or a run's folder, whose final model it takes.

    `template` auto is the one the model was trained with when its folder says so, else chatglm. dtype auto is
    fp32 on CPU and fp16 or bf16, as the weights are, on a GPU.
    """
    folder = model_folder(folder)
    place = choose_device(device)
    tokenizer = open_tokenizer(folder)
    if dtype == "auto":
        model = load_model(folder, "fp32" if place.type == "cpu" else None, place)
    else:
        model = load_model(folder, dtype, place)
    return Responder(model, tokenizer, trained_template(folder) if template == "auto" else template)


def choose_device(name: str) -> torch.device:
    """The device of that name (auto: a GPU if there is one); `UserError` for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name} is not known; give cpu, cuda, cuda:1 … or auto.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name} is not there: {torch.cuda.device_count()} GPUs can be used. Give cpu or auto."
        )
    return device


def seed_everything(seed: int | None) -> None:
    """Makes sampled answers repeatable."""
    if seed is not None:
        set_seed(seed)
