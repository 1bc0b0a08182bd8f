"""Questions in, answers out: prompt template, encoding and generation in one place."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig

from medsft.chatglm import ChatGLMForConditionalGeneration, ChatGLMTokenizer
from medsft.chatglm.base import open_tokenizer
from medsft.chatglm.quantization import use_fastest
from medsft.chatglm.weights import load_model
from medsft.data.encode import encode_prompt
from medsft.data.template import check_template
from medsft.errors import UserError
from medsft.inference.decoding import Decoder, Row
from medsft.inference.device import choose_devices
from medsft.inference.postprocess import AnswerText, postprocess
from medsft.inference.sampling import Sampling
from medsft.provenance import trained_template
from medsft.run_folder import model_folder

History = tuple[tuple[str, str], ...]

logger = logging.getLogger(__name__)


class Responder:
    """A model, its tokenizer and the form in which it was taught questions.

    polish: whether answers get the reference's post-processing. products: how quantised blocks are computed,
    in words.
    """

    def __init__(
        self,
        model: ChatGLMForConditionalGeneration,
        tokenizer: ChatGLMTokenizer,
        template: str,
        polish: bool = True,
        products: str = "",
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
        self.polish = polish
        self.products = products

    def prompt_ids(self, query: str, history: History, max_new_tokens: int) -> tuple[list[int], bool]:
        """Ids of the prompt with `[gMASK] <sop>`, and whether something had to go to leave room to answer.

        The oldest rounds go first. What users type never becomes a control token.
        """
        room = self.model.config.max_sequence_length - max_new_tokens - 2
        if room < 1:
            raise UserError(
                f"an answer of up to {max_new_tokens} tokens leaves no room for the question in the model's "
                f"{self.model.config.max_sequence_length} positions; allow fewer "
                "(--max_new_tokens, max_tokens)."
            )
        ids, cut = encode_prompt(query, history, self.tokenizer, room, self.template)
        return [*ids, self.tokenizer.gmask_token_id, self.tokenizer.bos_token_id], cut

    @property
    def keeps_history(self) -> bool:
        """Whether earlier rounds help: the training data of Med-ChatGLM's form has single questions only."""
        return self.template != "med-chatglm"

    @property
    def weights_gb(self) -> float:
        """What the weights take, 1e9 bytes."""
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers())) / 1e9

    @property
    def summary(self) -> str:
        """Size and place of the weights, and how quantised ones are computed with."""
        devices = dict.fromkeys(str(parameter.device) for parameter in self.model.parameters())
        parts = (f"{self.weights_gb:.2f} GB of weights", " and ".join(devices), self.products)
        return ", ".join(filter(None, parts))

    def new_text(self) -> AnswerText:
        """Makes text of the tokens of one answer."""
        return AnswerText(lambda ids: self.tokenizer.decode(ids, skip_special_tokens=True), self.polish)

    def answers(
        self, queries: Sequence[tuple[str, History]], sampling: Sampling, batch_size: int = 8
    ) -> list[str]:
        """One answer for each (question, earlier rounds); at most `batch_size` are generated side by side.

        With a seed each answer is the one that its question gets alone.
        """
        prompts = [self.prompt_ids(query, history, sampling.max_new_tokens)[0] for query, history in queries]
        if sampling.num_beams > 1:
            return [self._text(self._best_beam(prompt, sampling)) for prompt in prompts]
        decoder = Decoder(self.model)
        rows: list[Row] = []
        while len(rows) < len(prompts) or decoder.rows:
            while len(rows) < len(prompts) and len(decoder.rows) < batch_size:
                rows.append(decoder.add(prompts[len(rows)], sampling))
            decoder.step()
        return [self._text(row.answer_ids) for row in rows]

    def stream(self, query: str, history: History, sampling: Sampling) -> Iterator[str]:
        """Pieces of one answer as they are generated, "" for a token that settles none yet.

        They add up to the answer. Closing the iterator ends the generation.
        """
        ids, was_cut = self.prompt_ids(query, history, sampling.max_new_tokens)
        if was_cut:
            logger.warning("the conversation is too long for the model: its oldest part is left out")
        text = self.new_text()
        for token in self._tokens(ids, sampling):
            yield text.add(token)
        yield text.end()

    def _tokens(self, prompt: list[int], sampling: Sampling) -> Iterator[int]:
        if sampling.num_beams > 1:
            yield from self._best_beam(prompt, sampling)
            return
        decoder = Decoder(self.model)
        row = decoder.add(prompt, sampling)
        yield from row.answer_ids
        while decoder.rows:
            num_before = len(row.answer_ids)
            decoder.step()
            yield from row.answer_ids[num_before:]

    @torch.inference_mode()
    def _best_beam(self, prompt: list[int], sampling: Sampling) -> list[int]:
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        input_ids = torch.tensor([prompt], device=self.model.device)
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            **sampling.generate_arguments(),
        )
        return output[0, len(prompt) :].tolist()

    def _text(self, answer_ids: list[int]) -> str:
        text = self.tokenizer.decode(answer_ids, skip_special_tokens=True)
        return postprocess(text) if self.polish else text


def open_responder(
    folder: Path,
    template: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    quantize: int | None = None,
    polish: bool = True,
) -> Responder:
    """Loads a model folder (ours, the release, Med-ChatGLM) or a run's folder, whose final model it takes.

    `template` auto is the one the model was trained with when its folder says so, else chatglm. dtype as in
    `load_model`, device as in `choose_devices`. quantize: 8 or 4 bits for the linear layers, which compute in
    the fastest way there is. Raises UserError as these do, and where memory does not suffice.
    """
    folder = model_folder(folder)
    devices = choose_devices(device)
    tokenizer = open_tokenizer(folder)
    try:
        model = load_model(folder, dtype, devices, quantize)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{folder} does not fit into the memory of {' and '.join(map(str, devices))}. Give --quantize 8 "
            "or 4, --device all where there are several GPUs, or --device cpu."
        ) from error
    if template == "auto":
        template = trained_template(folder)
    check_template(template)
    return Responder(model, tokenizer, template, polish, use_fastest(model))
