"""A signal while train.py still imports: no traceback, and the exit code that it has later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from runs import REPOSITORY, TRAIN, clean_environment

PATIENCE_S = 60
# Python runs it first: the import of torch, the first that takes long, does not come to an end.
SITECUSTOMIZE = """
import sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("importing", flush=True)
            while True:
                time.sleep(0.05)

sys.meta_path.insert(0, Slow())
"""


@pytest.mark.parametrize(
    ("name", "rank", "code", "said"),
    [
        ("SIGINT", "0", 130, "medsft: interrupted\n"),
        ("SIGTERM", "0", 75, "medsft: SIGTERM: stopped before the training began\n"),
        ("SIGUSR1", "0", 75, "medsft: SIGUSR1: stopped before the training began\n"),
        ("SIGUSR2", "1", 75, ""),
    ],
)
def test_a_signal_during_the_imports(name, rank, code, said, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    search = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, TRAIN, "--help"],
        cwd=REPOSITORY,
        env=clean_environment() | {"RANK": rank, "PYTHONPATH": search},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.Signals[name])
        output, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert (process.returncode, output, errors) == (code, "", said)
