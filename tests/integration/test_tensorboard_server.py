"""TensorBoard itself, started on what a run wrote: its API gives the figures back, its page opens."""

import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest
from browser import CHROMIUM

from medsft.monitor.metrics import Metrics
from medsft.monitor.tensorboard import LAYOUT, TensorBoard

LOSSES = [3.0, 2.0, 1.5]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a TensorBoard on a free port of this machine; two processes wrote what it shows."""
    folder = tmp_path_factory.mktemp("曲线")
    for start_step, losses in ((0, [*LOSSES[:2], 9.0]), (2, LOSSES[2:])):  # step 3 is computed again
        board = TensorBoard(folder, start_step)
        for step, loss in enumerate(losses, start=start_step + 1):
            board.train(Metrics(step, 0.1, loss, 5e-5, 1.0, 10.0, 5.0, 8, 80, 0.99, 0, 1.0))
        board.close()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
    with subprocess.Popen(
        [*command, "--port", "0", "--load_fast", "false"], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            found = next(filter(None, (re.search(r"http://[\d.:]+/", line) for line in process.stderr)))
            yield found[0]
        finally:
            process.terminate()


def ask(server, path, **parameters):
    address = f"{server}data/plugin/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.load(answer)


def test_the_api_gives_each_step_once(server):
    points = ask(server, "scalars/scalars", run=".", tag="loss/train")
    assert [(step, value) for _, step, value in points] == list(enumerate(LOSSES, start=1))


def test_the_custom_page_has_its_groups(server):
    layout = ask(server, "custom_scalars/layout")
    assert [group["title"] for group in layout["category"]] == list(LAYOUT)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_opens_in_a_browser(server, tmp_path):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}"]
    command += ["--virtual-time-budget=15000", "--window-size=1200,900", "--dump-dom"]  # until it has drawn
    page = [*command, f"{server}#timeseries"]
    shown = subprocess.run(page, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "loss/train" in shown
    assert "throughput" in shown
