"""Both released tokenizers against the reference's ids and texts; skipped where they are not at hand."""

import copy
import json
import pickle

import pytest
from transformers import AutoTokenizer

from medsft.chatglm import ChatGLMTokenizer

RELEASES = ("v1.1", "v0.1")


@pytest.fixture(scope="module", params=RELEASES)
def release(request):
    return request.param


@pytest.fixture(scope="module")
def folder(shared_dir, release):
    return shared_dir / "chatglm6b" / release


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def golden(shared_dir, release):
    return json.loads((shared_dir / "golden" / "tokenizer" / f"{release}.json").read_text(encoding="utf-8"))


def differences(tokenizer, golden):
    """Texts for which anything differs from the reference."""
    return [
        case["text"]
        for case in golden["cases"]
        if tokenizer.encode(case["text"], add_special_tokens=False) != case["ids"]
        or tokenizer.encode(case["text"]) != case["ids_with_special"]
        or tokenizer.decode(case["ids"]) != case["decoded"]
    ]


def test_all_cases(tokenizer, golden, release):
    assert type(tokenizer) is ChatGLMTokenizer
    assert tokenizer.release == release
    assert len(golden["cases"]) == 300
    assert differences(tokenizer, golden) == []


def test_special_ids(tokenizer, golden):
    assert tokenizer.vocab_size == len(tokenizer) == golden["vocab_size"]
    for token, index in golden["special"].items():
        assert tokenizer.convert_tokens_to_ids(token) == index
    special = golden["special"]
    assert (tokenizer.bos_token_id, tokenizer.eop_token_id) == (special["<sop>"], special["<eop>"])
    assert (tokenizer.gmask_token_id, tokenizer.mask_token_id) == (special["[gMASK]"], special["[MASK]"])
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (special["<pad>"], special["<unk>"])
    end = "<eop>" if tokenizer.release == "v1.1" else "</s>"
    assert tokenizer.eos_token_id == special[end]


def test_save_and_reload_keep_all(tokenizer, golden, folder, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert differences(again, golden) == []
    assert again.release == tokenizer.release
    assert (tmp_path / "ice_text.model").read_bytes() == (folder / "ice_text.model").read_bytes()
    # The fields that the original code reads are there, as strings.
    released = json.loads((folder / "tokenizer_config.json").read_text())
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert {name: written.get(name) for name in released if name != "name_or_path"} == {
        name: value for name, value in released.items() if name != "name_or_path"
    }


def test_plain_encoding_agrees_where_no_special_token_is_spelled(tokenizer, golden):
    special = set(tokenizer.all_special_tokens)
    ordinary = [case for case in golden["cases"] if not any(token in case["text"] for token in special)]
    assert len(ordinary) > 280
    assert [case["text"] for case in ordinary if tokenizer.encode_plain(case["text"]) != case["ids"]] == []


def test_plain_encoding_never_yields_control_tokens(tokenizer, golden):
    spelled = "".join(f"a{token} b" for token in [*golden["special"], "[sMASK]", "<s>", "<ENC>"])
    ids = tokenizer.encode_plain(spelled)
    assert not tokenizer.control_token_ids & set(ids)
    assert tokenizer.decode(ids) == spelled.replace("<n>", "\n")  # a newline may be spelled
    for case in golden["cases"]:
        assert not tokenizer.control_token_ids & set(tokenizer.encode_plain(case["text"]))


def test_copies_work_alike(tokenizer, golden):
    for copied in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert differences(copied, {"cases": golden["cases"][::10]}) == []
