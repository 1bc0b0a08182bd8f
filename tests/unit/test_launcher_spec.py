"""What an agent is told, there and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.control.spec import Spec
from launcher.job import Node
from tests.unit.launcher_control import TOKEN, a_job


class TestSpec:
    def test_there_and_back(self):
        odd = ("--a b", 'it\'s "q"', "$(reboot)", "", "%h", "中文\n", "\udcff\udc80", "a=b,c")
        job = a_job(
            2,
            1,
            script=Path("my code/训练.py"),
            arguments=odd,
            environment=tuple((f"N{index}", value) for index, value in enumerate(odd)),
            logs=Path("/runs/一 个/logs"),
        )
        job = replace(job, nodes=(*job.nodes, Node("z", 2, devices=(1, 5))))
        spec = Spec("id", TOKEN, ("10.0.0.1", "::1"), 4000, 2, "/my folder/仓库", job)
        assert spec.to_json().isascii()
        assert Spec.from_json(spec.to_json()) == spec
        plain = replace(spec, index=None, job=replace(job, logs=None))
        assert Spec.from_json(plain.to_json()) == plain

    def test_the_token_is_not_shown(self):
        assert TOKEN not in repr(Spec("id", TOKEN, (), 1, None, "/", a_job(1)))

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"job": {}}', "null"])
    def test_other_text_is_refused(self, text):
        with pytest.raises((ValueError, KeyError, TypeError)):
            Spec.from_json(text)
