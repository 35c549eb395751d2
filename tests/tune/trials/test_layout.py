"""How many trials run at the same time, on the real local Ray with two CPUs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import ray

from pipelines.cluster import say_if_busy
from pipelines.errors import WrongCallError
from tune.trials.layout import Layout, Room, layout_for


def pending() -> int:
    """Placement groups that wait for resources, once Ray has looked at all of them."""
    from ray.util.placement_group import placement_group_table

    time.sleep(0.5)
    return sum(group["state"] == "PENDING" for group in placement_group_table().values())


def test_trials_fill_the_cluster_and_share_its_cpus(local_ray: None) -> None:
    assert layout_for(1, None) == Layout(1, None, use_gpu=False, threads=1)
    assert layout_for(1, 1) == Layout(1, 1, use_gpu=False, threads=2)
    assert layout_for(2, None) == Layout(2, None, use_gpu=False, threads=1)
    with pytest.raises(WrongCallError, match="at most 2 workers per trial, one per CPU"):
        layout_for(3, None)
    with pytest.raises(WrongCallError, match="at most 2 concurrent trials with 1 CPU each"):
        layout_for(1, 3)
    assert layout_for(1, 16, may_grow=True) == Layout(1, 16, use_gpu=False, threads=1)


def test_as_many_trials_have_room_as_fit_and_are_asked_for(local_ray: None) -> None:
    room = Room(layout_for(1, None))
    assert [room.has_room(running, running) for running in (0, 1, 2)] == [True, True, False]
    room = Room(layout_for(1, 1))
    assert [room.has_room(running, running) for running in (0, 1)] == [True, False]
    room = Room(layout_for(2, None))
    assert [room.has_room(running, running) for running in (0, 1)] == [True, False]
    assert pending() == 0  # nobody asked for more than fits


@pytest.fixture
def full(local_ray: None) -> Iterator[None]:
    """All CPUs are taken, as by trials; those of an earlier test may still be leaving."""
    from ray.util.placement_group import placement_group, remove_placement_group

    groups = [placement_group([{"CPU": 1}]) for _ in range(2)]
    ray.wait([group.ready() for group in groups], num_returns=2, timeout=60)
    before = pending()
    assert before == 0
    yield
    for group in groups:
        remove_placement_group(group)


def test_more_is_wished_for_only_while_all_trials_have_their_place(full: None) -> None:
    room = Room(layout_for(1, 4, may_grow=True))
    assert not room.has_room(2, 1)
    assert pending() == 0  # the wish would take the place of the other one
    assert not room.has_room(2, 2)
    assert not room.has_room(2, 2)
    assert pending() == 1
    assert not room.has_room(2, 1)  # a trial has lost its processes
    assert pending() == 0
    assert not room.has_room(2, 2)
    assert room.has_room(1, 1)
    assert pending() == 0
    assert not room.has_room(4, 4)
    assert pending() == 0
    assert not room.has_room(3, 3)
    room.close()
    assert pending() == 0


def test_a_job_says_that_others_use_the_cluster(full: None, caplog) -> None:
    say_if_busy(1)
    assert caplog.messages == ["waiting for 1 CPU: other jobs use 2 of this cluster's 2"]


def test_a_job_that_has_its_cpus_says_nothing(local_ray: None, caplog) -> None:
    end = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2:  # those of an earlier test may be leaving
        assert time.monotonic() < end
        time.sleep(0.1)
    say_if_busy(2)
    assert not caplog.messages
