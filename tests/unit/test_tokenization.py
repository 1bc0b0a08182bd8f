"""The tokenizer on small vocabularies in the released layouts."""

import json
import pickle

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from sentencepiece import sentencepiece_model_pb2 as proto
from transformers import AutoTokenizer

from medsft.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer
from medsft.chatglm.tokenization import SPECIAL_TOKENS, mark_whitespace, unmark_whitespace
from medsft.chatglm.tokenizer_training import MIN_VOCAB_SIZE, NUM_APPENDED_PIECES, train_tokenizer
from medsft.errors import UserError

DISEASES = ("感冒", "高血压", "糖尿病", "肺炎", "胃溃疡", "偏头痛", "哮喘", "贫血", "痛风", "湿疹")
TEMPLATES = (
    "{}的常见症状有哪些？一般会出现不适，请及时就医。",
    "得了{}应该挂哪个科室？建议先到内科就诊。",
    "{}患者饮食上要注意什么？少吃油腻，多吃蔬菜和水果。",
    "{}如何治疗？遵医嘱用药，每天 3 次，一次 2 片（0.5mg）。",
)
VOCAB_SIZE = 600  # more than these sentences fill
SENTENCES = [template.format(disease) for disease in DISEASES for template in TEMPLATES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("词表 v1.1")
    train_tokenizer(SENTENCES, folder, vocab_size=VOCAB_SIZE)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return ChatGLMTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def first_release(folder, tmp_path_factory):
    """The same text pieces laid out as in v0.1: no appended pieces in the file, 20000 image tokens before."""
    old = tmp_path_factory.mktemp("v0.1")
    model = proto.ModelProto.FromString((folder / "ice_text.model").read_bytes())
    del model.pieces[-NUM_APPENDED_PIECES:]
    model.trainer_spec.byte_fallback = False
    (old / "ice_text.model").write_bytes(model.SerializeToString())
    config = {"eop_token": "<eop>", "eos_token": "</s>", "tokenizer_class": "ChatGLMTokenizer"}
    (old / "tokenizer_config.json").write_text(json.dumps(config))
    return ChatGLMTokenizer.from_pretrained(old)


# --- training


def test_layout_of_a_trained_vocabulary(folder, tokenizer):
    pieces = SentencePieceProcessor(model_file=str(folder / "ice_text.model"))
    size = pieces.vocab_size()
    assert MIN_VOCAB_SIZE < size == tokenizer.vocab_size == len(tokenizer) <= VOCAB_SIZE
    assert [pieces.id_to_piece(index) for index in range(6)] == ["<unk>", "<s>", "</s>", "<pad>", "<n>", "▁"]
    first = size - NUM_APPENDED_PIECES
    assert tuple(pieces.id_to_piece(first + index) for index in range(8)) == SPECIAL_TOKENS
    assert all(pieces.is_control(first + index) for index in range(8))
    assert pieces.id_to_piece(first + 8) == "<|tab|>" and pieces.id_to_piece(first + 87) == "<|blank_80|>"
    assert [pieces.is_byte(index) for index in (first + 87, first + 88, size - 1)] == [False, True, True]
    scores = [pieces.get_score(index) for index in range(6, first)]
    assert scores == sorted(scores, reverse=True)
    assert tokenizer.release == "custom"


def test_types_mirror_the_release(folder, shared_dir):
    ours = proto.ModelProto.FromString((folder / "ice_text.model").read_bytes())
    released = proto.ModelProto.FromString((shared_dir / "chatglm6b/v1.1/ice_text.model").read_bytes())

    def outside_text(model):
        pieces = [*model.pieces[:5], *model.pieces[-NUM_APPENDED_PIECES:]]
        return [(piece.piece, piece.type, piece.score) for piece in pieces]

    assert outside_text(ours) == outside_text(released)
    for field in ("byte_fallback", "split_digits", "pad_id", "user_defined_symbols"):
        assert getattr(ours.trainer_spec, field) == getattr(released.trainer_spec, field)
    assert ours.normalizer_spec.name == released.normalizer_spec.name


def test_every_sentence_comes_back(tokenizer):
    for sentence in SENTENCES:
        half_width = sentence.translate(str.maketrans("，？！：；（）", ",?!:;()"))
        assert tokenizer.decode(tokenizer.encode_plain(sentence)) == half_width


@pytest.mark.parametrize(
    "text", ["龘靐\n\n\t表 两  空  格", "😷 emoji", "mixed 中文 and English", "\x00控制"]
)
def test_what_was_never_seen_comes_back(tokenizer, text):
    assert tokenizer.unk_token_id not in tokenizer.encode_plain(text)
    assert tokenizer.decode(tokenizer.encode_plain(text)) == text


def test_training_is_deterministic(folder, tmp_path):
    train_tokenizer(iter(SENTENCES), tmp_path, vocab_size=VOCAB_SIZE)
    assert (tmp_path / "ice_text.model").read_bytes() == (folder / "ice_text.model").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ice_text.model", "tokenizer_config.json"]


@pytest.mark.parametrize("vocab_size", [MIN_VOCAB_SIZE, 1000, 5000])
def test_any_vocabulary_size_works(tmp_path, vocab_size):
    """Fewer pieces than characters (bytes then spell the rest), and more than the corpus can fill."""
    tokenizer = train_tokenizer(SENTENCES, tmp_path, vocab_size)
    assert tokenizer.vocab_size <= vocab_size
    assert tokenizer.decode(tokenizer.encode_plain("糖尿病患者。")) == "糖尿病患者。"


def test_training_refuses_the_impossible(tmp_path):
    with pytest.raises(UserError, match=f"vocab_size is 300, must be at least {MIN_VOCAB_SIZE}"):
        train_tokenizer(SENTENCES, tmp_path, vocab_size=300)
    with pytest.raises(UserError, match="empty texts"):
        train_tokenizer(["", " \n"], tmp_path, vocab_size=1000)
    assert not list(tmp_path.iterdir())


# --- encoding


def test_whitespace_has_tokens():
    assert mark_whitespace("a\nb\tc  d" + " " * 81) == "a<n>b<|tab|>c<|blank_2|>d<|blank_80|> "
    for text in ("", "a b", " " * 200, "\t\n  x"):
        assert unmark_whitespace(mark_whitespace(text)) == text


def test_prompt_ends_with_gmask_and_sop(tokenizer):
    ids = tokenizer.encode_plain("感冒")
    end = [tokenizer.gmask_token_id, tokenizer.bos_token_id]
    assert tokenizer.encode("感冒") == ids + end
    answer = tokenizer.encode_plain("多喝水")
    assert tokenizer.encode("感冒", "多喝水") == [*ids, *end, *answer, tokenizer.eop_token_id]
    assert tokenizer.num_special_tokens_to_add() == 2 and tokenizer.num_special_tokens_to_add(pair=True) == 3
    mask = tokenizer("感冒", return_special_tokens_mask=True)["special_tokens_mask"]
    assert mask == [0] * len(ids) + [1, 1]


def test_control_tokens_in_text(tokenizer):
    text = "a [MASK] b<sop>c[gMASK]</s>"
    marked = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.mask_token_id in marked and tokenizer.bos_token_id in marked
    assert (
        tokenizer.gmask_token_id not in marked and tokenizer.convert_tokens_to_ids("</s>") not in marked
    )  # as in the reference
    plain = tokenizer.encode_plain(text)
    assert not tokenizer.control_token_ids & set(plain)
    assert tokenizer.decode(plain) == text


def test_decoding_leaves_out_control_tokens_and_rows_without_token(tokenizer):
    ids = tokenizer.encode("感冒 多喝水")
    for skip in (True, False):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == "感冒 多喝水"
        assert tokenizer.decode([*ids, VOCAB_SIZE, 9999], skip_special_tokens=skip) == "感冒 多喝水"
    assert tokenizer.decode([0]) == " ⁇ " and tokenizer.decode([0], skip_special_tokens=True) == ""
    assert tokenizer.decode(ids[0]) == "感冒" and tokenizer.decode(torch.tensor(ids)) == "感冒 多喝水"
    assert tokenizer.batch_decode([ids, ids[:2]])[0] == "感冒 多喝水"


def test_padded_batches_feed_generate(tokenizer):
    batch = tokenizer(["感冒", "高血压患者饮食上要注意什么？"], padding=True, return_tensors="pt")
    lengths = [len(tokenizer.encode(text)) for text in ("感冒", "高血压患者饮食上要注意什么？")]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert batch["input_ids"][0, 0] == tokenizer.pad_token_id  # on the left
    assert (batch["input_ids"][:, -1] == tokenizer.bos_token_id).all()
    config = ChatGLMConfig(
        vocab_size=512,
        hidden_size=32,
        num_layers=1,
        num_attention_heads=4,
        inner_hidden_size=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eop_token_id,
    )
    out = ChatGLMForConditionalGeneration(config).generate(**batch, max_new_tokens=3, eos_token_id=None)
    assert out.shape == (2, max(lengths) + 3)


# --- layouts and files


def test_first_release_layout(first_release, tokenizer):
    assert (
        first_release.num_image_tokens == 20000 and first_release.vocab_size == 20000 + tokenizer.vocab_size
    )
    text = "感冒\n多喝水  ，龘"
    assert first_release.encode_plain(text) == [20000 + index for index in tokenizer.encode_plain(text)]
    assert first_release.decode(first_release.encode_plain(text)) == tokenizer.decode(
        tokenizer.encode_plain(text)
    )
    assert first_release.eop_token_id == 20000 + tokenizer.eop_token_id
    assert first_release.eos_token_id == 20002 and first_release.end_token is None
    assert first_release.decode([5, 19999]) == ""  # image tokens
    assert first_release.convert_ids_to_tokens(7) == "<image_7>"
    assert first_release.convert_tokens_to_ids("<image_7>") == 7


def test_first_release_adds_what_is_missing_behind_a_prompt(first_release):
    t = first_release
    text, mask = t.encode_plain("感冒"), t.mask_token_id
    assert t.build_inputs_with_special_tokens(text) == [*text, t.gmask_token_id, t.bos_token_id]
    assert t.build_inputs_with_special_tokens([*text, mask]) == [*text, mask, t.bos_token_id]
    assert t.build_inputs_with_special_tokens([mask, *text]) == [mask, *text, t.eos_token_id, t.bos_token_id]


@pytest.mark.parametrize("layout", ["tokenizer", "first_release"])
def test_save_reload_and_pickle(request, layout, tmp_path):
    tokenizer = request.getfixturevalue(layout)
    tokenizer.save_pretrained(tmp_path)
    text = "感冒 <eop> </s> [MASK] 多喝水"
    for again in (ChatGLMTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert again.encode(text) == tokenizer.encode(text)
        assert (again.eop_token_id, again.gmask_token_id) == (
            tokenizer.eop_token_id,
            tokenizer.gmask_token_id,
        )
        assert pickle.loads(pickle.dumps(again)).encode(text) == tokenizer.encode(text)
        assert again.padding_side == "left" and again.all_special_ids == tokenizer.all_special_ids
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["gmask_token"] == "[gMASK]" and written["mask_token"] == "[MASK]"
    assert written["tokenizer_class"] == "ChatGLMTokenizer"
    assert "added_tokens_decoder" not in written and "added_tokens.json" not in {
        p.name for p in tmp_path.iterdir()
    }


def test_auto_tokenizer_finds_the_class_beside_a_config(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    ChatGLMConfig().save_pretrained(tmp_path)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is ChatGLMTokenizer


def test_tokens_that_users_add(folder, tmp_path):
    tokenizer = ChatGLMTokenizer.from_pretrained(folder)
    assert tokenizer.add_tokens(["<病历>"]) == 1
    ids = tokenizer.encode("感冒<病历>高血压", add_special_tokens=False)
    assert tokenizer.vocab_size in ids and tokenizer.decode(ids) == "感冒<病历>高血压"
    tokenizer.save_pretrained(tmp_path)
    assert ChatGLMTokenizer.from_pretrained(tmp_path).encode("<病历>") == tokenizer.encode("<病历>")


def test_faulty_vocabulary_files(folder, tmp_path):
    (tmp_path / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    with pytest.raises(UserError, match=r"ice_text.model is not there"):
        ChatGLMTokenizer(tmp_path / "ice_text.model")
    (tmp_path / "ice_text.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"not a SentencePiece model.*Git LFS"):
        ChatGLMTokenizer.from_pretrained(tmp_path)
