"""generate(): cache, padding, defaults, streaming, and the guard against invalid scores."""

import logging
import warnings
from threading import Thread

import pytest
import torch
from transformers import AutoModel, LogitsProcessorList, TextIteratorStreamer

from medsft.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from medsft.chatglm.generation import InvalidScoreLogitsProcessor
from medsft.chatglm.tokenizer_training import train_tokenizer
from medsft.errors import UserError

PAD, MASK, GMASK, BOS, EOP = 3, 90, 91, 94, 95
PROMPTS = (
    [7, 8, 9, 10, 11, GMASK, BOS],
    [17, GMASK, BOS],
    [27, MASK, 28, 29, BOS],
    [27, MASK, 28, 29, GMASK, BOS],
)
NUM_NEW = 10


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ChatGLMConfig(
        vocab_size=128,
        hidden_size=32,
        num_layers=3,
        num_attention_heads=4,
        inner_hidden_size=128,
        bos_token_id=BOS,
        eos_token_id=EOP,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    model = ChatGLMForConditionalGeneration(config).eval()
    with torch.no_grad():  # untrained models repeat one token; large weights make them wander
        for parameter in model.parameters():
            parameter.mul_(4).add_(torch.randn_like(parameter) * 0.1)
    return model


def left_padded(prompts=PROMPTS):
    length = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (length - len(prompt)) + prompt for prompt in prompts])
    return ids, (ids != PAD).long()


def continuations(model, ids, mask=None, **settings):
    settings = {"max_new_tokens": NUM_NEW, "do_sample": False, **settings}
    return model.generate(ids, attention_mask=mask, **settings)[:, ids.shape[1] :].tolist()


def up_to_end(tokens):
    return tokens[: tokens.index(EOP) + 1] if EOP in tokens else tokens


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    "cache", [{"use_cache": True}, {"use_cache": False}, {"cache_implementation": "static"}]
)
def test_batch_cache_and_beams_agree_with_single_prompts(model, num_beams, cache):
    ids, mask = left_padded()
    together = continuations(model, ids, mask, num_beams=num_beams, **cache)
    for prompt, tokens in zip(PROMPTS, together, strict=True):
        alone = continuations(model, torch.tensor([prompt]), num_beams=num_beams, use_cache=False)[0]
        assert up_to_end(tokens) == up_to_end(alone)
        assert num_beams > 1 or len(set(alone)) > 3  # a toy that says different things


def test_each_step_is_what_the_whole_sequence_predicts(model):
    """Independent of generate's own bookkeeping: positions and mask of the sequence as a whole."""
    ids, mask = left_padded()
    for prompt, tokens in zip(PROMPTS, continuations(model, ids, mask, eos_token_id=None), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(dim=-1).tolist() == tokens


def test_sampling_follows_the_seed_with_and_without_cache(model):
    ids, mask = left_padded()
    draws = []
    for seed, use_cache in ((1, True), (1, False), (2, True)):
        torch.manual_seed(seed)
        draws.append(
            continuations(model, ids, mask, do_sample=True, top_p=1.0, temperature=2.0, use_cache=use_cache)
        )
    assert draws[0] == draws[1] != draws[2]


def test_stops_at_eop_and_pads_behind_it(model):
    ids, mask = left_padded()
    free = continuations(model, ids, mask, eos_token_id=None)
    end = free[0][2]
    stopped = continuations(model, ids, mask, eos_token_id=end)
    for tokens, whole in zip(stopped, free, strict=True):
        if end in whole:
            stop = whole.index(end) + 1
            assert tokens[:stop] == whole[:stop] and set(tokens[stop:]) <= {PAD}
    assert model.generation_config.eos_token_id == EOP


def test_padding_is_recognised_without_a_mask(model):
    ids, mask = left_padded()
    assert continuations(model, ids) == continuations(model, ids, mask)


def test_prompt_without_bos_says_what_is_missing(model):
    with pytest.raises(UserError, match="has no <sop>"):
        model.generate(torch.tensor([[7, 8, GMASK]]), max_new_tokens=2)


def test_defaults_are_the_releases_with_and_without_their_file(model, tmp_path):
    model.save_pretrained(tmp_path)
    for has_file in (True, False):
        if not has_file:
            (tmp_path / "generation_config.json").unlink()
        settings = AutoModel.from_pretrained(tmp_path).generation_config
        assert (settings.top_p, settings.temperature, settings.max_length) == (0.7, 0.95, 2048)
        assert (settings.do_sample, settings.num_beams, settings.eos_token_id) == (True, 1, EOP)


def test_a_folders_own_settings_win(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 5, "eos_token_id": 95}')
    settings = AutoModel.from_pretrained(tmp_path).generation_config
    assert settings.max_new_tokens == 5 and settings.do_sample is None


def test_limiting_new_tokens_warns_of_nothing(model, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            out = model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=3, eos_token_id=None)
    finally:
        logger.removeHandler(caplog.handler)
    assert out.shape[1] == len(PROMPTS[0]) + 3
    assert not caplog.records


def test_invalid_scores_become_the_blank_row_by_row():
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor(
        [
            [0.0, 1, 2, 3, 4, 5, 6],
            [nan, 1, 2, 3, 4, 5, 6],
            [inf, 1, 2, 3, 4, 5, 6],
            [-inf] * 7,
            [-inf, 1, 2, 3, 4, 5, 6],
        ]
    )
    out = InvalidScoreLogitsProcessor(5)(torch.zeros(5, 1, dtype=torch.long), scores)
    assert torch.equal(out[[0, 4]], scores[[0, 4]])  # a forbidden token is no fault
    for row in (1, 2, 3):
        assert out[row].argmax() == 5 and out[row].count_nonzero() == 1
    assert torch.isfinite(InvalidScoreLogitsProcessor(5)(None, scores.half())[1]).all()


def test_generation_survives_nan(model):
    def poison(input_ids, scores):
        return scores * float("nan") if input_ids.shape[1] == len(PROMPTS[0]) + 1 else scores

    broken = ChatGLMForConditionalGeneration(model.config).eval()
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.lm_head.weight[17] = float("nan")
    out = broken.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=4)
    assert out[0, len(PROMPTS[0]) :].tolist() == [PAD + 2] * 4
    # Processors that a caller brings come after the guard.
    with pytest.raises(RuntimeError, match="nan"):
        model.generate(
            torch.tensor([PROMPTS[0]]), logits_processor=LogitsProcessorList([poison]), max_new_tokens=4
        )


def test_text_streams(tmp_path):
    sentences = ["感冒多喝水,注意休息。", "头痛的时候怎么办?", "高血压患者要少吃盐。", "咳嗽可以喝蜂蜜水。"]
    tokenizer = train_tokenizer(sentences, tmp_path, vocab_size=400)
    config = ChatGLMConfig(
        vocab_size=448,
        hidden_size=32,
        num_layers=1,
        num_attention_heads=4,
        inner_hidden_size=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eop_token_id,
    )
    torch.manual_seed(3)
    model = ChatGLMForConditionalGeneration(config).eval()
    inputs = tokenizer(["感冒怎么办?"], return_tensors="pt")
    settings = {"max_new_tokens": 20, "do_sample": True, "temperature": 5.0, "top_p": 1.0, "top_k": 0}
    torch.manual_seed(5)
    whole = model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    torch.manual_seed(5)
    thread = Thread(target=model.generate, kwargs={**inputs, **settings, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == tokenizer.decode(whole, skip_special_tokens=True)
    assert len([piece for piece in pieces if piece]) > 1
