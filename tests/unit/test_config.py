from dataclasses import fields

import pytest

from medsft.checkpoint.manifest import Identity
from medsft.config import CHANGEABLE, parse
from medsft.errors import UserError

REQUIRED = ["--model_name_or_path", "model", "--train_file", "a.jsonl", "--output_dir", "out"]


def test_flags_land_in_their_groups():
    config = parse([*REQUIRED, "--learning_rate", "1e-4", "--packing", "false", "--max_source_length", "64"])
    assert config.optimization.learning_rate == 1e-4
    assert config.optimization.packing is False
    assert config.data.max_source_length == 64
    assert config.flags()["output_dir"] == "out"


def test_several_files_with_blanks_and_chinese():
    config = parse(
        ["--model_name_or_path", "模 型", "--output_dir", "o", "--train_file", "a b.jsonl", "病例.csv"]
    )
    assert config.data.train_file == ["a b.jsonl", "病例.csv"]
    assert config.model.model_name_or_path == "模 型"


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], None), (["auto"], None), (["True"], True), (["false"], False), ("bare", True)],
)
def test_gradient_checkpointing_is_left_to_the_plan_or_switched(words, expected):
    words = [] if words == "bare" else words
    flag = [] if expected is None and not words else ["--gradient_checkpointing", *words]
    assert parse([*flag, *REQUIRED]).model.recomputes is expected


def test_a_wrong_switch_says_what_is_allowed():
    with pytest.raises(UserError, match="--gradient_checkpointing maybe must be auto, true or false"):
        parse([*REQUIRED, "--gradient_checkpointing", "maybe"])


def test_deepspeed_adds_local_rank_with_equals():
    assert parse(["--local_rank=3", *REQUIRED]).run.local_rank == 3


def test_yaml_is_below_the_command_line(tmp_path):
    path = tmp_path / "运行 1.yaml"
    path.write_text(
        "model_name_or_path: 模型\ntrain_file: [a.jsonl, b.jsonl]\noutput_dir: out\nlearning_rate: 1.0e-4\n"
        "packing: false\nseed: 7\nmax_train_samples: null\nsave_strategy: no\neval_steps:\n",
        encoding="utf-8",
    )
    config = parse(["--config", str(path), "--seed", "8"])
    assert config.data.train_file == ["a.jsonl", "b.jsonl"]
    assert config.optimization.learning_rate == 1e-4
    assert config.optimization.packing is False
    assert config.optimization.seed == 8
    assert config.data.max_train_samples is None
    assert config.run.save_strategy == "no"  # YAML would read it as false


def test_yaml_lists_what_may_have_changed(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("allow_changed: [data, seed]\nresume_from_checkpoint: 旧的 run\n", encoding="utf-8")
    config = parse(["--config", str(path), *REQUIRED])
    assert config.run.allow_changed == ["data", "seed"]
    assert config.run.resume_from_checkpoint == "旧的 run"


def test_a_run_saves_and_resumes_without_being_told():
    run = parse(REQUIRED).run
    assert (run.save_strategy, run.resume_from_checkpoint, run.on_save_failure) == ("epoch", "auto", "stop")


def test_what_may_have_changed_is_what_is_compared():
    assert sorted(CHANGEABLE) == sorted(field.name for field in fields(Identity))
    assert parse([*REQUIRED, "--allow_changed", *CHANGEABLE]).run.allow_changed == list(CHANGEABLE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("lerning_rate: 1", ["lerning_rate", "learning_rate"]),
        ("- a\n- b", ["list", "flag: value"]),
        ("a: [", ["YAML"]),
    ],
)
def test_bad_yaml_is_explained(tmp_path, content, words):
    path = tmp_path / "run.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        parse(["--config", str(path)])
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_missing_yaml_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"missing\.yaml"):
        parse(["--config", str(tmp_path / "missing.yaml")])


def test_unknown_flag_suggests_the_near_one():
    with pytest.raises(UserError, match=r"--lerning_rate.*learning_rate.*--do_train"):
        parse([*REQUIRED, "--lerning_rate", "1", "--do_train"])


def test_a_wrong_type_names_flag_and_value():
    with pytest.raises(UserError, match=r"seed.*'x'"):
        parse([*REQUIRED, "--seed", "x"])


def test_all_faults_come_in_one_message():
    with pytest.raises(UserError) as caught:
        parse(["--seed", "-1", "--warmup_ratio", "1.5", "--max_steps", "0", "--history_column", "h"])
    text = str(caught.value)
    for word in ("--model_name_or_path", "--train_file", "--output_dir", "--seed -1", "--warmup_ratio 1.5"):
        assert word in text
    assert "--max_steps 0" in text
    assert "--history_column h" in text
    assert "\n" not in text


def test_help_is_grouped(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for group in ("\nmodel:\n", "\ndata:\n", "\noptimization:\n", "\nrun:\n"):
        assert group in text


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--learning_rate", "inf"], "--learning_rate inf must be a finite number"),
        (["--max_grad_norm", "nan"], "--max_grad_norm nan must be a finite number"),
        (["--save_steps", "100"], "--save_steps 100 needs --save_strategy steps"),
        (["--save_minutes", "5"], "--save_minutes 5.0 needs --save_strategy time"),
        (["--save_strategy", "time", "--save_minutes", "0"], "--save_minutes 0.0 must be above 0"),
        (["--save_total_limit", "0"], "--save_total_limit 0 must be 1 or more"),
        (["--keep_every_steps", "0"], "--keep_every_steps 0 must be 1 or more"),
        (["--resume_from_checkpoint", ""], "--resume_from_checkpoint must be auto, latest, none or a path"),
        (["--allow_changed", "seed", "weather"], "--allow_changed weather must be of data, tokenizer"),
        (["--eval_steps", "100"], "--eval_steps 100 needs --validation_file"),
        (
            ["--micro_batch_tokens", "99", "--packing", "false"],
            "--micro_batch_tokens 99 needs --packing true",
        ),
    ],
)
def test_flags_that_would_do_nothing_or_harm_are_refused(more, word):
    with pytest.raises(UserError) as caught:
        parse([*REQUIRED, *more])
    assert word in str(caught.value)
