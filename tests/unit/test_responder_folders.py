"""Which folders answer: both vocabularies, quantised ones; and the error where parts do not fit together."""

import shutil

import pytest

from medsft.chatglm.tokenizer_training import NUM_APPENDED_PIECES
from medsft.chatglm.weights import convert
from medsft.errors import UserError
from medsft.inference.decoding import Decoder
from medsft.inference.responder import open_responder
from medsft.inference.sampling import Sampling
from tests.unit.weights_toys import (
    NUM_IMAGE_TOKENS,
    NUM_SPARE_ROWS,
    num_pieces,
    random_tensors,
    toy_settings,
    train_toy_tokenizer,
    write_model,
    write_v01_tokenizer,
)

GREEDY = Sampling(max_new_tokens=8, greedy=True, repetition_penalty=9.0)
QUESTIONS = [("糖尿病 患者 应当 控制 饮食", ()), ("[gMASK] fever <sop> <eop>", (("咳嗽", "发热"),))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One model under both vocabularies; v0.1's config does not name the mask tokens."""
    root = tmp_path_factory.mktemp("folders")
    tokenizer = train_toy_tokenizer(root / "v1.1-tokenizer")
    old = write_v01_tokenizer(tokenizer, root / "v0.1")
    first = NUM_IMAGE_TOKENS + num_pieces(old)
    settings = toy_settings(first, first + NUM_APPENDED_PIECES + NUM_SPARE_ROWS, NUM_IMAGE_TOKENS)
    del settings["mask_token_id"], settings["gmask_token_id"]
    write_model(old, settings, random_tensors(settings), max_shard_bytes=1_000_000)
    convert(old, root / "v1.1", vocabulary="v1.1", tokenizer_dir=tokenizer)
    convert(old, root / "v0.1-int8", quantize=8, weights_format="bin")
    return root


def tokens(responder):
    """Eight tokens of each answer, greedily; untrained weights choose any, image tokens too."""
    responder.model.config.eos_token_id = None
    decoder = Decoder(responder.model)
    rows = [decoder.add(responder.prompt_ids(*question, 8)[0], GREEDY) for question in QUESTIONS]
    while decoder.rows:
        decoder.step()
    return [row.answer_ids for row in rows]


def test_a_form_of_questions_that_is_not_known(folders, tmp_path):
    folder = shutil.copytree(folders / "v1.1", tmp_path / "edited")
    (folder / "medsft.json").write_text('{"prompt_template": "ChatGLM"}')
    with pytest.raises(UserError, match="'ChatGLM' is not known; give one of auto, chatglm"):
        open_responder(folder, device="cpu")


def test_both_vocabularies_are_asked_alike(folders):
    old, new = (open_responder(folders / name, device="cpu") for name in ("v0.1", "v1.1"))
    for question in QUESTIONS:
        shifted = [index + NUM_IMAGE_TOKENS for index in new.prompt_ids(*question, 8)[0]]
        assert old.prompt_ids(*question, 8)[0] == shifted
    for responder in (old, new):
        assert all(isinstance(answer, str) for answer in responder.answers(QUESTIONS, GREEDY))
        assert [len(answer) for answer in tokens(responder)] == [8, 8]


def test_quantised_folders_answer_as_quantised_on_load(folders):
    stored = tokens(open_responder(folders / "v0.1-int8", device="cpu"))
    assert stored == tokens(open_responder(folders / "v0.1", device="cpu", quantize=8))
    assert len({index for answer in stored for index in answer}) > 1


def test_parts_that_do_not_belong_together(folders, tmp_path):
    mixed = shutil.copytree(folders / "v0.1", tmp_path / "mixed")
    for name in ("ice_text.model", "tokenizer_config.json"):
        shutil.copyfile(folders / "v1.1-tokenizer" / name, mixed / name)
    with pytest.raises(UserError, match="tokenizer"):
        open_responder(mixed, device="cpu")
