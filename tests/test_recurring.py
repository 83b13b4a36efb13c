"""Schedules: which job a run draws, by the time at which it was due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from prefect_regional_diffusion.flows.recurring import job_at, recurring
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob

JOB = RenderJob(prompt="a blue background", seed=5)
PROMPTS = ("a red background", "a green background", "an orange background")
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def test_fixed_changes_nothing() -> None:
    assert job_at(NOON, JOB, "fixed", (), "fixed") == JOB


def test_a_seed_by_date_lasts_a_day() -> None:
    morning, evening = NOON.replace(hour=0), NOON.replace(hour=23, minute=59)
    seeds = [job_at(due, JOB, "by date", (), "fixed").seed for due in (morning, evening, NOON + DAY)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert max(seeds) < 2**53, "a browser would round it"


def test_a_seed_by_run_is_that_of_the_time_it_was_due() -> None:
    due = [NOON, NOON + timedelta(minutes=1), NOON.astimezone(ZoneInfo("Asia/Tokyo"))]
    first, later, same_moment = (job_at(time, JOB, "by run", (), "fixed").seed for time in due)
    assert first == same_moment != later


def test_jobs_with_other_seeds_go_other_ways() -> None:
    other = JOB.model_copy(update={"seed": 6})
    assert job_at(NOON, JOB, "by date", (), "fixed").seed != job_at(NOON, other, "by date", (), "fixed").seed


def test_prompts_are_walked_through_in_order_day_by_day() -> None:
    walked = [job_at(NOON + i * DAY, JOB, "fixed", PROMPTS, "by date").prompt for i in range(7)]
    start = PROMPTS.index(walked[0])
    assert walked == [PROMPTS[(start + i) % 3] for i in range(7)]
    # New year, and a year that is a leap year: no day is left out or drawn twice.
    around = [job_at(datetime(2028, 2, 28, tzinfo=UTC) + i * DAY, JOB, "fixed", PROMPTS, "by date") for i in range(3)]
    assert {job.prompt for job in around} == set(PROMPTS)


def test_the_date_is_that_of_the_time_zone() -> None:
    """23:30 in London is the next day in Berlin, and two in Berlin on one date share seed and prompt."""
    late = datetime(2026, 11, 21, 23, 30, tzinfo=UTC)
    berlin = late.astimezone(ZoneInfo("Europe/Berlin"))
    next_noon = (NOON + DAY).astimezone(ZoneInfo("Europe/Berlin"))
    in_berlin, in_london = (job_at(due, JOB, "by date", PROMPTS, "by date") for due in (berlin, late))
    assert in_berlin != in_london
    assert in_berlin == job_at(next_noon, JOB, "by date", PROMPTS, "by date")


def test_the_clock_change_leaves_no_day_out() -> None:
    zone = ZoneInfo("Europe/Berlin")
    walked = [
        job_at(datetime(2026, 10, day, 2, 30, tzinfo=zone), JOB, "by date", PROMPTS, "by date") for day in (24, 25, 26)
    ]
    assert {job.prompt for job in walked} == set(PROMPTS)


def test_prompts_by_run_are_drawn_by_lot() -> None:
    due = [NOON + timedelta(hours=6 * i) for i in range(60)]
    drawn = [job_at(time, JOB, "fixed", PROMPTS, "by run").prompt for time in due]
    assert set(drawn) == set(PROMPTS)
    assert drawn == [job_at(time, JOB, "fixed", PROMPTS, "by run").prompt for time in due]
    assert drawn != [PROMPTS[i % 3] for i in range(60)]


def test_an_unknown_time_zone_is_refused_with_what_is_allowed() -> None:
    from prefect.exceptions import ParameterTypeError

    with pytest.raises((ParameterTypeError, ValidationError), match="IANA"):
        recurring.validate_parameters({"job": JOB, "timezone": "Mars/Base"})
