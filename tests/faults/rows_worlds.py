"""Another number of ranks at every start."""

from __future__ import annotations

from campaign import NUM_STEPS, Campaign, curve, leftovers, resumed_step
from jobs import committed, last_step, metrics
from tally import Tally

from medsft.checkpoint.layout import step_folder
from medsft.checkpoint.verify import verify

_SIZES = (2, 1, 3, 2)


def change_the_world_size(campaign: Campaign, tally: Tally, quick: bool) -> None:
    """Row 23: 2, 1, 3 and 2 ranks, stopped in between by the file STOP."""
    run = campaign.new_run("other worlds")
    for number, size in enumerate(_SIZES):
        reached = last_step(run)
        if number:
            tally.inject(f"go on with {size} ranks after {_SIZES[number - 1]}, from step {reached}")
        with campaign.start(run, ranks=size, save_steps=NUM_STEPS) as job:
            recovered_s = job.wait_for_step(reached + 1) - job.started_s
            if number + 1 < len(_SIZES):
                job.wait_for_step(NUM_STEPS // len(_SIZES) * (number + 1) - 1)
                (run / "STOP").touch()
            tally.equal(job.end(), 75 if number + 1 < len(_SIZES) else 0, f"exit code\n{job.text}\n")
            if number:
                tally.recovered_s.append(recovered_s)
                tally.steps_lost.append(reached - resumed_step(job.text))
                tally.equal(tally.steps_lost[-1], 0, "steps lost")
        tally.equal(committed(run)[-1], last_step(run), "step of the newest checkpoint")
        tally.equal(leftovers(run), [], "left over in the checkpoints folder")
        for step in committed(run):
            verify(step_folder(run / "checkpoints", step))
            tally.num_checks += 1
    tally.equal([record["step"] for record in metrics(run)], list(range(1, NUM_STEPS + 1)), "steps told")
    worst = 0.0
    for step, (loss, _, examples, tokens) in curve(run).items():
        expected = campaign.reference.curve[step]
        tally.equal((examples, tokens), expected[2:], f"examples and tokens seen after step {step}")
        worst = max(worst, abs(loss / expected[0] - 1))
    tally.check(worst <= 1e-5, f"a loss differs by {worst:.1e}, relatively, from that of 2 ranks throughout")
    tally.remarks.append(f"largest relative difference of a loss {worst:.1e}")
