"""Prompt templates and encoding, with a real tokenizer."""

from typing import get_args, get_type_hints

import pytest

from medsft.chatglm import ChatGLMTokenizer
from medsft.chatglm.tokenizer_training import train_tokenizer
from medsft.cli.options import Template
from medsft.config import DataConfig
from medsft.data.encode import describe_example, encode_example
from medsft.data.records import Example, read_files
from medsft.data.template import TEMPLATES, check_template, detect_template, render
from medsft.errors import UserError

TEXTS = [
    "患者发热、咳嗽三天，应当怎样治疗？",
    "多喝水，按时休息，必要时服用退热药。",
    "头痛是什么原因引起的？",
]
HISTORY = (("头痛", "休息"), ("发热", "喝水"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> ChatGLMTokenizer:
    return train_tokenizer(TEXTS * 4, tmp_path_factory.mktemp("tokenizer"), 450)


def example(query="头痛怎么办？", response="休息。", history=()) -> Example:
    return Example(query, response, history, "a.jsonl:1")


def encode(tokenizer, item: Example, source=256, target=256, template="chatglm"):
    encoded = encode_example(item, tokenizer, source, target, template)
    assert encoded.input_ids[encoded.context_length - 1] == tokenizer.gmask_token_id
    assert encoded.input_ids[encoded.context_length] == tokenizer.bos_token_id
    assert encoded.input_ids[-1] == tokenizer.eop_token_id
    prompt = encoded.input_ids[: encoded.context_length - 1]
    answer = encoded.input_ids[encoded.context_length + 1 : -1]
    return prompt, answer, encoded


def test_templates():
    assert render("chatglm", "问") == "问"
    assert render("chatglm", "问", HISTORY) == (
        "[Round 0]\n问：头痛\n答：休息\n[Round 1]\n问：发热\n答：喝水\n[Round 2]\n问：问\n答："
    )
    assert render("none", "问", HISTORY) == "头痛\n休息\n发热\n喝水\n问"
    assert render("med-chatglm", "问") == "问题：问\n回答: "
    assert render("med-chatglm", "问题：问\n回答: ") == "问题：问\n回答: "
    assert render("med-chatglm", "问", HISTORY[:1]) == "问题：头痛\n回答: 休息\n问题：问\n回答: "


def test_template_is_detected():
    med, plain = example("问题：头痛\n怎么办？\n回答: "), example("头痛")
    assert detect_template([med, med]) == "med-chatglm"
    assert detect_template([med, plain]) == "chatglm"
    assert detect_template([]) == "chatglm"


def test_unknown_template_is_refused():
    names = {"auto", *TEMPLATES}
    assert (
        {name.value for name in Template}
        == names
        == set(get_args(get_type_hints(DataConfig)["prompt_template"]))
    )
    for name in names:
        check_template(name)
    with pytest.raises(
        UserError, match="'alpaca' is not known; give one of auto, chatglm, med-chatglm, none"
    ):
        check_template("alpaca")


def test_layout_of_an_example(tokenizer):
    prompt, answer, encoded = encode(tokenizer, example())
    assert prompt == tokenizer.encode_plain("头痛怎么办？")
    assert answer == tokenizer.encode_plain("休息。")
    assert encoded.num_targets == len(answer) + 2
    assert not encoded.source_cut and not encoded.target_cut


def test_limits_count_the_control_tokens(tokenizer):
    prompt, answer, _ = encode(tokenizer, example())
    *_, whole = encode(tokenizer, example(), len(prompt) + 1, len(answer) + 2)
    assert not whole.source_cut and not whole.target_cut
    cut_prompt, cut_answer, cut = encode(tokenizer, example(), len(prompt), len(answer) + 1)
    assert cut_prompt == prompt[1:] and cut.source_cut
    assert cut_answer == answer[:-1] and cut.target_cut


def test_oldest_rounds_go_first_then_the_front(tokenizer):
    item = example(history=HISTORY)
    wanted = [tokenizer.encode_plain(render("chatglm", item.query, HISTORY[first:])) for first in range(3)]
    assert len(wanted[0]) > len(wanted[1]) > len(wanted[2])
    for first in range(3):
        prompt, _, encoded = encode(tokenizer, item, len(wanted[first]) + 1)
        assert prompt == wanted[first]
        assert encoded.source_cut == (first > 0)
    prompt, _, encoded = encode(tokenizer, item, len(wanted[0]))
    assert prompt == wanted[1] and encoded.source_cut
    prompt, _, _ = encode(tokenizer, item, 4)
    assert prompt == wanted[2][-3:]


@pytest.mark.parametrize(("source", "target"), [(1, 256), (256, 2)])
def test_limits_without_room_are_refused(tokenizer, source, target):
    with pytest.raises(UserError, match="must be at least"):
        encode_example(example(), tokenizer, source, target, "none")


CONTROL_TEXT = "[MASK][gMASK] [sMASK]<sop>a<eop></s><s><pad><unk> <unused_0><ENC><dBLOCK> [MASK]"


def check_no_control_token(tokenizer):
    item = example(f"x{CONTROL_TEXT}", CONTROL_TEXT, ((CONTROL_TEXT, CONTROL_TEXT),))
    for template in TEMPLATES:
        prompt, answer, encoded = encode(tokenizer, item, template=template)
        assert not (set(prompt) | set(answer)) & tokenizer.control_token_ids
        assert encoded.input_ids.count(tokenizer.bos_token_id) == 1
        # SentencePiece takes the blank before the text away, and nothing else of it.
        assert CONTROL_TEXT in tokenizer.decode(prompt)
        assert tokenizer.decode(answer) == CONTROL_TEXT


def test_text_never_becomes_a_control_token(tokenizer):
    check_no_control_token(tokenizer)


@pytest.mark.parametrize("release", ["v1.1", "v0.1"])
def test_text_never_becomes_a_control_token_in_the_releases(shared_dir, release):
    check_no_control_token(ChatGLMTokenizer.from_pretrained(shared_dir / "chatglm6b" / release))


@pytest.mark.parametrize("release", ["v1.1", "v0.1"])
def test_real_pairs_have_the_published_lengths(shared_dir, release):
    tokenizer = ChatGLMTokenizer.from_pretrained(shared_dir / "chatglm6b" / release)
    examples = read_files([shared_dir / "data" / "med_chatglm_train.jsonl"]).examples
    template = detect_template(examples)
    lengths = [len(encode_example(item, tokenizer, 256, 256, template).input_ids) for item in examples]
    assert template == "med-chatglm"
    assert sum(lengths) == 503_546
    assert max(lengths) == 264


def test_description_tells_context_from_target(tokenizer):
    *_, encoded = encode(tokenizer, example("头痛", "休息"))
    context, supervised = describe_example(encoded, tokenizer).splitlines()
    assert context.startswith("context") and context.endswith("'头痛' [gMASK]")
    assert supervised.startswith("supervised") and supervised.endswith("<sop> '休息' <eop>")
