"""Steps as micro-batches, for every rank, from any step on."""

import json
import threading
from functools import partial

import numpy as np
import pytest

from medsft.chatglm.tokenizer_training import train_tokenizer
from medsft.data.cache import EncodedDataset, load_or_build
from medsft.data.loader import StepBatches
from medsft.data.plan import InOrderPlan, StepPlan, split, split_by_count

PAD = 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> EncodedDataset:
    folder = tmp_path_factory.mktemp("data")
    tokenizer = train_tokenizer(["头痛、发热、咳嗽怎么办？"] * 3, folder, 400)
    records = [{"prompt": f"头痛{i}怎么办？" * (1 + i % 4), "response": f"{i}"} for i in range(23)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return load_or_build(
        [folder / "a.jsonl"], tokenizer, folder / "cache", max_source_length=64, max_target_length=32
    )


def plan_for(dataset: EncodedDataset, epochs: int = 2) -> StepPlan:
    return StepPlan.for_run(len(dataset), dataset.fingerprint, 8, 1, epochs)


def text_of(micro_batch) -> list[int]:
    """Useful ids of a micro-batch, sorted: comparable whatever the split."""
    return sorted(micro_batch.input_ids[micro_batch.input_ids != PAD].tolist())


def test_ranks_together_see_each_step_once(dataset):
    plan = plan_for(dataset)
    whole = [
        sorted(np.concatenate([dataset[i].input_ids for i in plan.examples(s)]))
        for s in range(plan.num_steps)
    ]
    for packed, share in (
        (True, partial(split, world_size=1, num_micro_batches=1)),
        (True, partial(split, world_size=2, num_micro_batches=2)),
        (True, partial(split, world_size=3, num_micro_batches=1, max_tokens=70)),
        (False, partial(split_by_count, world_size=2, max_examples=3)),
    ):
        world_size = share.keywords["world_size"]
        loaders = [StepBatches(dataset, plan, share, rank, PAD, packed=packed) for rank in range(world_size)]
        for step, ranks in enumerate(zip(*loaders, strict=True)):
            infos, micro_batches = zip(*ranks, strict=True)
            assert len(set(infos)) == 1 and infos[0].step == step
            assert len({len(own) for own in micro_batches}) == 1
            every = [micro_batch for own in micro_batches for micro_batch in own]
            assert sorted(token for micro_batch in every for token in text_of(micro_batch)) == whole[step]
            for name in ("num_examples", "num_tokens", "num_targets", "num_slots"):
                assert getattr(infos[0], name) == sum(getattr(micro_batch, name) for micro_batch in every)
        assert step == plan.num_steps - 1


def test_starting_later_gives_the_same_steps(dataset):
    plan = plan_for(dataset)
    share = partial(split, world_size=2, num_micro_batches=1)
    with StepBatches(dataset, plan, share, 1, PAD) as batches:
        everything = [(info, own[0].input_ids.tolist()) for info, own in batches]
    with StepBatches(dataset, plan, share, 1, PAD, start_step=3, end_step=5) as batches:
        assert [(info, own[0].input_ids.tolist()) for info, own in batches] == everything[3:5]
    assert len(everything) == plan.num_steps


def test_in_order(dataset):
    share = partial(split_by_count, world_size=1, max_examples=8)
    with StepBatches(dataset, InOrderPlan(len(dataset), 8), share, 0, PAD) as batches:
        assert [info.num_examples for info, _ in batches] == [8, 8, 7]


def test_closing_early_ends_the_thread(dataset):
    before = threading.active_count()
    with StepBatches(
        dataset, plan_for(dataset, 50), partial(split, world_size=1, num_micro_batches=1), 0, PAD, depth=1
    ) as batches:
        next(batches)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    assert list(batches) == []
    batches.close()


def test_no_more_steps_are_prepared_than_asked_for(dataset):
    made = []

    def share(lengths):
        made.append(len(lengths))
        return split(lengths, 1, 1)

    with StepBatches(dataset, plan_for(dataset, 50), share, 0, PAD, depth=2) as batches:
        next(batches)
        next(batches)
        # Two were taken, two lie ready, one is in the thread's hands.
        assert len(made) <= 5


def test_an_error_in_the_thread_is_raised_here(dataset):
    def share(lengths):
        raise ZeroDivisionError("in the thread")

    before = threading.active_count()
    batches = StepBatches(dataset, plan_for(dataset), share, 0, PAD)
    with pytest.raises(ZeroDivisionError, match="in the thread"):
        next(batches)
    assert threading.active_count() == before
    assert list(batches) == []
