"""Another number of ranks at every start."""

from __future__ import annotations

from campaign import NUM_STEPS, Campaign, leftovers, resumed_step
from jobs import committed, last_step
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
    campaign.check_curve(tally, run, most=1e-5)
