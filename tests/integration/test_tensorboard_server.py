"""TensorBoard itself, started on what a run wrote: its API gives the figures back, its page opens."""

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import replace

import pytest
from browser import CHROMIUM, Browser

from medsft.monitor.metrics import Metrics
from medsft.monitor.sink import Summary
from medsft.monitor.tensorboard import LAYOUT, TensorBoard

LOSSES = [3.0, 2.0, 1.5]
METRICS = Metrics(3, 0.1, 1.5, 5e-5, 1.0, 10.0, 5.0, 8, 80, 0.99, 0, 1.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a TensorBoard on a free port of this machine; two processes wrote what it shows."""
    folder = tmp_path_factory.mktemp("曲线")
    for start_step, losses in ((0, [*LOSSES[:2], 9.0]), (2, LOSSES[2:])):  # step 3 is computed again
        board = TensorBoard(folder, start_step)
        named_s = int(time.time())
        for step, loss in enumerate(losses, start=start_step + 1):
            board.train(replace(METRICS, step=step, loss=loss))
        if start_step:
            board.finish(Summary(3, 1.0, 2.5, 2, METRICS, {"learning_rate": 5e-5}))
        board.close()
        # A run that has gone on is of a later second. Files of one second are told apart by a number, which
        # TensorBoard compares as text: the tenth would be read before the ninth.
        while int(time.time()) == named_s:
            time.sleep(0.05)
    # It reads everything before it answers; by default it answers while it still reads, half of it perhaps.
    reading = ["--reload_task", "blocking", "--reload_interval", "0", "--load_fast", "false"]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), *reading]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", "0"], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            found = next(filter(None, (re.search(r"http://[\d.:]+/", line) for line in process.stderr)))
            yield found[0]
        finally:
            process.terminate()


def ask(server, path, **parameters):
    address = f"{server}data/plugin/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(address, timeout=60) as answer:
        return json.load(answer)


def test_the_api_gives_each_step_once(server):
    points = ask(server, "scalars/scalars", run=".", tag="loss/train")
    assert [(step, value) for _, step, value in points] == list(enumerate(LOSSES, start=1))


def test_the_custom_page_has_its_groups(server):
    layout = ask(server, "custom_scalars/layout")
    assert [group["title"] for group in layout["category"]] == list(LAYOUT)


def test_hyperparameters_stand_beside_the_final_figures(server):
    wanted = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "startIndex": 0, "sliceSize": 9}
    request = urllib.request.Request(
        f"{server}data/plugin/hparams/session_groups",
        data=json.dumps(wanted).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        (group,) = json.load(answer)["sessionGroups"]
    assert group["hparams"]["learning_rate"] == 5e-5
    values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
    assert values == {
        "result/train_loss": 1.5,
        "result/best_validation_loss": 2.5,
        "result/tokens_per_s": 10.0,
    }


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_opens_in_a_browser_and_draws_curves(server, tmp_path):
    page = Browser(tmp_path / "profile", width=1200, height=900)
    try:
        page.call("Page.navigate", url=f"{server}#timeseries")
        # The page puts group and name of a curve on two lines.
        page.wait_for(r"/loss\s*\/train/.test(document.body?.innerText)")
        page.wait_for("document.querySelectorAll('line-chart').length > 0")
        page.screenshot(tmp_path / "page.png")
    finally:
        page.close()
    assert (tmp_path / "page.png").stat().st_size > 20_000
