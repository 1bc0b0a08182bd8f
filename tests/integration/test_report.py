"""The report's page: what it shows, half-written files, and how a browser sees it."""

import json
import re
import shutil
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from typer.testing import CliRunner

from medsft.cli import app
from medsft.errors import UserError
from medsft.evaluation.comparison_page import write_comparison
from medsft.evaluation.findings import Answered, Change, Findings
from medsft.evaluation.question_set import Question
from medsft.monitor.run import read_run
from medsft.monitor.run_page import run_page
from medsft.run_folder import move_aside_results


def report(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def run(tmp_path):
    """A run that is still going on: a skipped step without loss, and a line that is half written."""
    folder = tmp_path / "运行 <1>"
    folder.mkdir()
    lines = [
        {"kind": "train", "step": step, "loss": None if step == 3 else 5 / step, "tokens_per_s": 100.0 + step}
        for step in range(1, 7)
    ]
    lines.append({"kind": "validation", "step": 6, "loss": 1.5})
    lines.append({"kind": "checkpoint", "step": 6, "stall_s": 0.1})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"kind": "train", "st', encoding="utf-8")
    (folder / "run.json").write_text(
        json.dumps({"num_steps": 9, "flags": {"learning_rate": 5e-5}}), encoding="utf-8"
    )
    return folder


def first_chart(page):
    """The one of the training loss."""
    return page.split("<h2>Learning")[1].split("<figure>")[1]


def test_a_run_that_goes_on_is_shown(run):
    assert report(run).exit_code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "6 / 9" in page
    assert "unreadable lines of metrics.jsonl, left out 无法读取的行: 9" in page
    assert "not finished" in page
    assert "运行 &lt;1&gt;" in page
    assert "<1>" not in page
    assert "learning_rate" in page
    assert not re.search(r"(src|href)=|url\(|<script", page)
    assert "Content-Security-Policy" in page


def test_a_half_written_file_is_named(run):
    (run / "evaluation").mkdir()
    (run / "evaluation" / "测试.json").write_text('{"loss": 1.', encoding="utf-8")
    (run / "evaluation" / "whole.json").write_text('{"loss": 1.25}', encoding="utf-8")
    (run / "run.json").write_text("", encoding="utf-8")
    page = run_page([read_run(run)])
    assert "files that hold no JSON, left out 无法读取的文件: run.json, evaluation/测试.json" in page
    assert "1.25" in page
    for path in (run / "run.json", run / "evaluation" / "测试.json"):
        path.write_text("{}", encoding="utf-8")
    assert "无法读取的文件" not in run_page([read_run(run)])


def test_a_missing_value_is_a_gap(run):
    loss = first_chart(run_page([read_run(run)]))
    assert loss.count("<polyline") == 2


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"kind": "train", "step": 7, "loss": 1%s}' % ("0" * 400),
        '{"kind": "train", "step": 1%s}' % ("0" * 400),
    ],
    ids=["nested", "integer", "step"],
)
def test_no_line_is_too_odd(run, line):
    far, last = ({"kind": "train", "step": step, "loss": loss} for step, loss in ((8, -1e308), (9, 1e308)))
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n{json.dumps(far)}\n{json.dumps(last)}\n")
    assert "9 / 9" in run_page([read_run(run)])


def test_runs_lie_over_each_other(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "evaluation").mkdir()
    (other / "evaluation" / "evaluation.json").write_text('{"scores": {"bleu_4": 7.25}}', encoding="utf-8")
    page = tmp_path / "both.html"
    assert report(run, other, "--output", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert first_chart(text).count("<polyline") == 4
    assert "7.25" in text


def rows(page, title):
    """Rows of the table under a title, as texts of their cells."""
    table = page.split(f"<summary>{title}</summary>")[1].split("</table>")[0]
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in table.split("<tr>")[1:]]


def test_the_data_is_counted_cut_and_packed(run):
    lengths = {"p50": 25, "p90": 40, "max": 61}
    data = {"num_examples": 200, "num_bad": 3, "bad_by_reason": {"no answer": 3}, "num_tokens": 10_000}
    data |= {"num_targets": 4_000, "num_sources_cut": 10, "num_targets_cut": 0, "length_quantiles": lengths}
    facts = {
        "data": data | {"template": "med-chatglm"},
        "validation_data": {"num_examples": "<b>", "num_tokens": []},
    }
    (run / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"kind": "train", "step": 7, "loss": 1.0, "packing_efficiency": 0.95}\n')
    table = rows(run_page([read_run(run)]), "Data 数据")
    assert table[0] == ["", "training 训练", "validation 验证"]
    assert ["examples 样本", "200", "&lt;b&gt;"] in table
    assert ["left out 弃用", "3", "—"] in table
    assert ["reasons 弃用原因", "no answer 3", "—"] in table
    assert ["supervised tokens 监督 token", "4,000 (40.0%)", "—"] in table
    assert ["prompts cut 截短的问题", "10 (5.0%)", "—"] in table
    assert ["answers cut 截短的回答", "0 (0.0%)", "—"] in table
    assert ["length in tokens 长度", "p50 25, p90 40, max 61", "—"] in table
    assert ["packed, useful share 打包效率", "95.0%", "—"] in table


def test_samples_show_the_first_answers_and_the_last(run):
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n")
        for step, answer in ((10, ""), (20, "半"), (30, "<b>去医院</b>")):
            sample = {"question": "头痛怎么办？", "answer": answer, "expected": "去医院"}
            file.write(json.dumps({"kind": "samples", "step": step, "samples": [sample, 7]}) + "\n")
    assert rows(run_page([read_run(run)]), "Samples 回答示例") == [
        ["question 问题", "expected 标准答案", "step 10", "step 30"],
        ["头痛怎么办？", "去医院", "—", "&lt;b&gt;去医院&lt;/b&gt;"],
    ]


def test_an_answer_stands_beside_its_own_question(run):
    """The run has gone on with other validation data."""
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step, question in ((10, "头痛?"), (20, "发热?")):
            sample = {"question": question, "answer": f"答 {question}", "expected": ""}
            file.write("\n" + json.dumps({"kind": "samples", "step": step, "samples": [sample]}))
    assert rows(run_page([read_run(run)]), "Samples 回答示例")[1:] == [
        ["头痛?", "—", "答 头痛?", "—"],
        ["发热?", "—", "—", "答 发热?"],
    ]


def test_evaluations_stand_side_by_side(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    for folder, score in ((run, 7.25), (other, 9.5)):
        (folder / "evaluation").mkdir()
        found = {"loss": None, "scores": {"bleu_4": score}, "worst": [{"question": "<1>", "score": 0}]}
        (folder / "evaluation" / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")
    (other / "evaluation" / "half.json").write_text('{"loss"', encoding="utf-8")
    page = run_page([read_run(run), read_run(other)])
    name = str(run).replace("<1>", "&lt;1&gt;")
    table = rows(page, "evaluation.json")
    assert table == [["measure 指标", name, str(other)], ["loss", "—", "—"], ["scores.bleu_4", "7.25", "9.5"]]
    assert rows(page, f"evaluation.json, {other}: worst") == [["question", "score"], ["&lt;1&gt;", "0"]]
    assert page.count("half.json") == 1  # in the line that says what was left out


def test_a_comparison_in_the_runs_folder_is_shown(run):
    bell = "红\u202e\x07<b>"
    question = Question("挂什么科?", "神经内科。")
    answered = (Answered(question, bell, "神经内科。"),)
    findings = Findings(answered, (Change("medical", 3.0, 0.5),), {}, ())
    (run / "evaluation").mkdir()
    write_comparison(run / "evaluation" / "a.html", Path("base"), run, findings, ["only 0% exact"])
    assert report(run).exit_code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    name = str(run).replace("<1>", "&lt;1&gt;")
    assert ["faults", "only 0% exact"] in rows(page, "a.html.json")
    assert rows(page, f"a.html.json, {name}: losses") == [["kind", "base", "tuned"], ["medical", "3", "0.5"]]
    _, (asked, _, expected, before, is_exact, *after) = rows(page, f"a.html.json, {name}: answers")
    assert (asked, expected, before, is_exact) == ("挂什么科?", "神经内科。", "红&lt;b&gt;", "no 否")
    assert after == ["神经内科。", "yes 是"]
    move_aside_results(run)  # the run goes on: it was true of an earlier model
    assert not (run / "evaluation").exists()


def test_starts_and_checkpoints_stand_on_the_time_line(tmp_path):
    lines = [
        {"kind": "start", "time": 0, "step": 0},
        {"kind": "train", "time": 10, "step": 10, "loss": 2},
        {"kind": "checkpoint", "time": 11, "step": 10},
        {"kind": "train", "time": 20, "step": 20, "loss": 1.5},
        {
            "kind": "start",
            "time": 60,
            "step": 10,
            "hosts": ["node-1", "<b>"],
        },  # it went on from the checkpoint
        {"kind": "train", "time": 70, "step": 20, "loss": 1.5},
    ]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    chart = run_page([read_run(tmp_path)]).split("<h2>Time line")[1].split("</svg>")[0]
    assert re.findall(r"<title>((?:start|checkpoint)[^<]*)</title>", chart) == [
        "start at step 0",
        "checkpoint of step 10",
        "start at step 10 on node-1, &lt;b&gt;",
    ]
    assert chart.count("<polyline") == 2  # nothing was trained between the two processes


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        report(tmp_path)


def test_a_run_without_a_report_yet_makes_a_page(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(b"\xff\x00[1]\n")
    assert "<figure>" not in run_page([read_run(tmp_path)])
    metrics.write_text('{"kind": "train", "step": "<script>"}\n', encoding="utf-8")
    assert "<script>" not in run_page([read_run(tmp_path)])


BOXES = "[...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect())"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_charts_and_finds_no_fault(run, tmp_path):
    report(run)
    page = Browser(tmp_path / "profile", width=1180, height=1000)
    try:
        # What the page logs from its very beginning, and what its own policy keeps it from, is an entry here.
        page.call("Log.enable")
        page.call("Runtime.enable")
        page.call("Page.navigate", url=(run / "report.html").as_uri())
        page.wait_for("document.readyState == 'complete' && document.title.includes('Training')")
        boxes = page.run(f"{BOXES}.map(box => [box.width, box.height])")
        assert len(boxes) == 4 and all(width > 300 and height > 100 for width, height in boxes)
        drawn = page.run("[...document.querySelectorAll('polyline')].map(line => line.getTotalLength())")
        assert len(drawn) > 4 and max(drawn) > 100
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), "wider than the window"
        page.screenshot(tmp_path / "page.png")
        assert page.complaints == []
    finally:
        page.close()
    assert (tmp_path / "page.png").stat().st_size > 20_000  # an empty page of this size is 5 kB
