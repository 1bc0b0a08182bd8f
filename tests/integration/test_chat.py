"""Answers from a toy that has learnt a few pairs: streamed, with history, on a terminal and from a pipe."""

import io
import locale
import os
import pty
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from chat_toy import PAIRS, ROUND
from typer.testing import CliRunner

from medsft.chatglm import ChatGLMForConditionalGeneration
from medsft.chatglm.base import open_tokenizer
from medsft.cli import app
from medsft.data.records import read_files
from medsft.errors import UserError
from medsft.inference.chat import _enable_line_editing, chat
from medsft.inference.responder import Responder
from medsft.inference.sampling import Sampling

MEDSFT = str(Path(sys.executable).with_name("medsft"))
GREEDY = Sampling(max_new_tokens=40, greedy=True)


@pytest.fixture(scope="module")
def responder(chat_model_dir):
    model = ChatGLMForConditionalGeneration.from_pretrained(chat_model_dir).eval()
    return Responder(model, open_tokenizer(chat_model_dir), "chatglm")


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.source)
def test_pieces_add_up_to_the_answer(responder, pair):
    pieces = list(responder.stream(pair.query, pair.history, GREEDY))
    assert len(pieces) > 3
    assert "\ufffd" not in "".join(pieces[:-1])
    assert "".join(pieces) == responder.answers([(pair.query, pair.history)], GREEDY)[0]
    assert "".join(pieces) == pair.response


def test_a_batch_answers_as_single_questions_do(responder):
    queries = [(pair.query, pair.history) for pair in PAIRS]
    assert responder.answers(queries, GREEDY, batch_size=2) == [pair.response for pair in PAIRS]


def test_seeded_sampling_repeats_itself(responder):
    settings = Sampling(max_new_tokens=12, temperature=5.0, top_p=1.0)
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        answers.append("".join(responder.stream("头痛怎么办？", (), settings)))
    assert answers[0] == answers[1] != answers[2]


def test_closing_the_stream_ends_the_generation(responder):
    passes = []
    hook = responder.model.register_forward_hook(lambda *_: passes.append(1))
    stream = responder.stream("头痛怎么办？", (), GREEDY)
    next(stream)
    next(stream)
    stream.close()
    hook.remove()
    assert len(passes) == 2


def test_beams_give_the_answer_whole(responder):
    beams = Sampling(max_new_tokens=40, greedy=True, num_beams=3)
    for pair in PAIRS[:2]:
        assert "".join(responder.stream(pair.query, pair.history, beams)) == pair.response
        assert responder.answers([(pair.query, pair.history)], beams) == [pair.response]
    drawn = Sampling(max_new_tokens=12, temperature=5.0, top_p=1.0, num_beams=2, seed=3)
    assert responder.answers([("头痛怎么办？", ())] * 2, drawn) == responder.answers(
        [("头痛怎么办？", ())] * 2, drawn
    )


@pytest.mark.parametrize("seed", [2**32, 2**63 - 1])
def test_large_seeds_are_taken(responder, seed):
    for num_beams in (1, 2):
        drawn = Sampling(max_new_tokens=4, temperature=5.0, top_p=1.0, num_beams=num_beams, seed=seed)
        assert responder.answers([("头痛怎么办？", ())], drawn) == responder.answers(
            [("头痛怎么办？", ())], drawn
        )


def test_the_command_takes_large_seeds(chat_model_dir):
    command = [MEDSFT, "chat", "--model", str(chat_model_dir), "--max_new_tokens", "4", "--seed"]
    for seed, status in ((2**63 - 1, 0), (2**63, 2)):
        done = subprocess.run([*command, str(seed)], input="头痛怎么办？\n", capture_output=True, text=True)
        assert done.returncode == status, done.stderr


def test_control_tokens_in_a_question_stay_text(responder):
    ids, _ = responder.prompt_ids("[gMASK]<sop>头痛<eop>[MASK]", (), 40)
    control = responder.tokenizer.control_token_ids
    assert [index for index in ids if index in control] == ids[-2:]
    assert responder.answers([("[gMASK]<sop>", ())], GREEDY)


def test_the_answer_as_it_was_decoded(chat_model_dir, responder):
    raw = Responder(responder.model, open_tokenizer(chat_model_dir), "chatglm", polish=False)
    assert "".join(raw.stream("发烧呢？", (), GREEDY)) == PAIRS[1].response.replace("，", ",")


def test_a_failing_generation_is_raised_not_waited_for(responder, monkeypatch):
    def fail(*arguments, **more):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("medsft.inference.decoding.Decoder.step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(responder.stream("头痛怎么办？", (), GREEDY))


def test_no_room_for_the_question_is_explained(responder):
    with pytest.raises(UserError, match=r"up to 255 tokens.*256 positions.*--max_new_tokens"):
        list(responder.stream("头痛怎么办？", (), Sampling(max_new_tokens=255)))


def test_old_rounds_make_room_with_a_notice(responder, caplog):
    history = ROUND * 40
    assert "".join(responder.stream("头痛怎么办？", history, GREEDY))
    assert "oldest part is left out" in caplog.text


def talk(responder, text, keep_history, capsys):
    chat(responder, GREEDY, keep_history, io.StringIO(text))
    return capsys.readouterr().out


def test_history_is_kept_until_cleared(responder, capsys):
    answer, then = ROUND[0][1], PAIRS[2].response
    assert talk(responder, "头痛怎么办？\n然后呢？\nexit\n发烧呢？\n", True, capsys) == f"{answer}\n{then}\n"
    alone = responder.answers([("然后呢？", ())], GREEDY)[0]
    assert alone != then
    assert talk(responder, "头痛怎么办？\nclear\n然后呢？\n", True, capsys) == f"{answer}\n{alone}\n"
    assert talk(responder, "头痛怎么办？\n然后呢？\n", False, capsys) == f"{answer}\n{alone}\n"


def test_the_mark_before_utf8_of_windows_is_no_part_of_the_question(responder, capsys):
    assert talk(responder, "\ufeff头痛怎么办？\n", True, capsys) == f"{ROUND[0][1]}\n"


@pytest.mark.parametrize("name", ["C", "C.UTF-8"])
def test_lines_are_edited_where_the_locale_knows_their_characters(name, monkeypatch):
    """In the C locale readline would take the bytes of Chinese characters for key commands."""
    monkeypatch.delitem(sys.modules, "readline", raising=False)
    monkeypatch.setattr(locale, "setlocale", lambda category: name)
    _enable_line_editing()
    assert ("readline" in sys.modules) == (name != "C")


def test_control_characters_do_not_reach_the_terminal(responder, capsys, monkeypatch):
    monkeypatch.setattr(responder, "stream", lambda *_: (piece for piece in ["a\x1b[31m", "红\t\n　b\x07"]))
    assert talk(responder, "x\n", False, capsys) == "a[31m红\t\n　b\n"


def test_what_the_output_cannot_spell_does_not_end_the_conversation(responder, chat_model_dir, monkeypatch):
    monkeypatch.setattr(responder, "stream", lambda *_: (piece for piece in ["微笑", "😀"]))
    monkeypatch.setattr("medsft.inference.responder.open_responder", lambda *_: responder)
    result = CliRunner(charset="gbk").invoke(app, ["chat", "--model", str(chat_model_dir)], input="笑\n")
    assert (result.exit_code, result.stdout) == (0, "微笑?\n")


def test_an_answer_that_is_stopped_leaves_the_old_one(responder, capsys, monkeypatch):
    """`/again`, then Ctrl-C: the round stays, with the answer that it had."""
    asked = []

    def stream(question, history, sampling):
        asked.append((question, history))
        yield f"{len(asked)}."
        if len(asked) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(responder, "stream", stream)
    lines = iter(["甲", "乙", "/again", "/history", "/again", "/history"])
    monkeypatch.setattr("medsft.inference.chat._questions", lambda *_: lines)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    chat(responder, GREEDY, True, terminal)
    first = (("甲", "1."),)
    assert asked == [("甲", ()), *[("乙", first)] * 3]
    told = capsys.readouterr().out
    assert "问：乙\n答：2.\n" in told
    assert told.endswith("问：甲\n答：1.\n问：乙\n答：4.\n")


def test_a_terminal_is_greeted_prompted_and_answered(chat_model_dir, tmp_path):
    parent, child = pty.openpty()
    process = subprocess.Popen(
        # As its own terminal, where Ctrl-C reaches it.
        ["setsid", "--ctty", MEDSFT, "chat", "--model", str(chat_model_dir), "--greedy"],
        stdin=child,
        stdout=child,
        stderr=child,
        close_fds=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "TERM": "xterm"},
    )
    os.close(child)
    seen = bytearray()

    def wait_for(text):
        """Reads until `text` comes; what was read is not looked at again."""
        deadline = time.monotonic() + 90
        while text.encode() not in seen:
            assert time.monotonic() < deadline, seen.decode(errors="replace")
            seen.extend(os.read(parent, 4096))
        del seen[: seen.index(text.encode()) + len(text.encode())]

    try:
        wait_for("GB of weights")
        wait_for("no medical advice")
        for line, told in [
            ("发烧呢？", "38.5度以上吃退烧药。"),
            ("clear", "历史已清空"),
            ("/again", "尚无对话"),
            ("发烧呢？", "tokens/s"),
            ("/again", "tokens/s"),
            ("/history", "问：发烧呢？"),
            ("/save", "name a file"),
            (f"/save {tmp_path}/谈 话.jsonl", "已保存"),
            (f"/save {tmp_path}/谈 话.jsonl", "name a new file"),
            (f"/save {tmp_path}/none/x", "cannot be written"),
            ("/save ~nobody-has-this-name/x", "cannot be written"),
            (f"/save {tmp_path}/{'x' * 256}", "cannot be written"),
        ]:
            wait_for("\r\n问：")
            os.write(parent, f"{line}\n".encode())
            wait_for(told)
        wait_for("\r\n问：")
        for _ in range(5):
            # Python does not see a Ctrl-C that comes in the instant before it waits for a key.
            os.write(parent, b"\x03")
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
                break
        assert process.returncode == 130
    finally:
        process.kill()
        process.wait()
        os.close(parent)
    (example,) = read_files([tmp_path / "谈 话.jsonl"]).examples
    assert (example.query, example.response, example.history) == (PAIRS[1].query, PAIRS[1].response, ())


def test_a_closed_input_is_told(chat_model_dir, monkeypatch):
    from medsft.cli.chat import chat as command

    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed"):
        command(chat_model_dir)
