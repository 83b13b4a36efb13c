"""How much a job may ask for: limits of the settings, images and job files that unpack to far more than they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prefect_regional_diffusion.sampling_core.errors import RegionalError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.tasks.inputs.image_files import read_image_files
from prefect_regional_diffusion.tasks.inputs.job_files import read_job
from prefect_regional_diffusion.tasks.inputs.limits import check_cells, check_limits
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.bombs import BOMBS
from tests.processes import ROOT

MASK = {"x": 0, "y": 0, "width": 1, "height": 1}


def refused(call: Any, *arguments: Any) -> RegionalError:
    with pytest.raises(RegionalError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return error.value


LIMITS = [
    ("REGIONAL_MAX_JOB_BYTES", "100", {}, "job: "),
    ("REGIONAL_MAX_CANVAS_PIXELS", "16383", {}, "width x height: 16384"),
    ("REGIONAL_MAX_STEPS", "19", {}, "steps: 20"),
    ("REGIONAL_MAX_REGIONS", "1", {"regions": [{"prompt": "a", "mask": MASK}] * 2}, "regions: 2"),
    ("REGIONAL_MAX_PICTURES", "2", {"batch_size": 3}, "batch_size: 3"),
    ("REGIONAL_MAX_EVALUATIONS", "39", {}, "job: 40"),
]


@pytest.mark.parametrize(("name", "limit", "changes", "says"), LIMITS, ids=[name for name, *_ in LIMITS])
def test_limits(name: str, limit: str, changes: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = parse_job({"prompt": "a blue background"} | changes)
    prepare(job)
    monkeypatch.setenv(name, limit)
    settings.cache_clear()
    error = str(refused(prepare, job))
    assert error.startswith(says)
    assert f"at most {limit} (" in error
    assert name in error


def test_a_grid_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    check_cells("rows x columns", 16, 16)
    assert "REGIONAL_MAX_CELLS" in str(refused(check_cells, "rows x columns", 16, 17))


def test_the_largest_job_that_a_server_takes_is_a_limit_here_too() -> None:
    job = RenderJob(prompt="x" * 600_000)
    assert str(refused(check_limits, job, resolve(job))).startswith("job: 600")


def test_images_of_a_job_share_a_limit(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONAL_MAX_IMAGE_PIXELS", "3000")
    for i in range(3):
        Image.new("L", (32, 32), 255 - i).save(f"{i}.png")
    regions = [{"prompt": "a", "mask": {"image": f"{i}.png"}} for i in range(3)]
    read_image_files(resolve(parse_job({"prompt": "a", "regions": regions[:2]})))
    error = refused(read_image_files, resolve(parse_job({"prompt": "a", "regions": regions})))
    assert error.field == "regions.2.mask.image"


READING = """
import resource, sys
from prefect_regional_diffusion.tasks.inputs.image_files import read_image_files
from prefect_regional_diffusion.sampling_core.errors import RegionalError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        read_image_files(resolve(parse_job({"prompt": "a", "regions": [{"prompt": "a", "mask": {"image": name}}]})))
        sys.exit(f"{name} was read")
    except RegionalError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_bombs_are_refused_before_they_unpack(workdir: Path) -> None:
    """A process of its own reads them all; it must not have needed 50 MB for it at any moment."""
    for name, data in BOMBS.items():
        assert len(data) < 500_000
        Path(name).write_bytes(data)
    command = [sys.executable, "-W", "ignore", "-c", READING, *BOMBS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    assert done.returncode == 0, done.stderr
    *lines, megabytes = done.stdout.splitlines()
    assert len(lines) == len(BOMBS)
    assert all(line.startswith("regions.0.mask.image: ") for line in lines)
    assert int(megabytes) < 50


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def tenfold(start: str, line: str) -> str:
    """Eleven lines, each with ten aliases of the one before."""
    lines = [line.format(i, ", ".join([f"*a{i - 1}"] * 10)) for i in range(1, 12)]
    return "\n".join([start, *lines])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (tenfold("a0: &a0 [x, x]", "a{0}: &a{0} [{1}]"), "characters with its aliases written out"),
        (tenfold("a0: &a0 {x: 1, y: 2}", "a{0}: &a{0} {{<<: [{1}]}}"), "a mapping of more than 1000 keys"),
        ("a: &a x\nb: [" + "*a, " * 2000 + "]", "more than 1000 aliases"),
        ("a: &a [*a]", "valid YAML"),
        ("prompt: !!python/object/apply:os.system [touch owned]", "constructor"),
        ("prompt: " + "x" * 600_000, "REGIONAL_MAX_JOB_BYTES"),
    ],
    ids=["tenfold lists", "tenfold merges", "aliases", "circle", "code", "large"],
)
def test_job_files_that_grow_or_act(text: str, says: str, workdir: Path) -> None:
    Path("job.yaml").write_text(text)
    error = refused(read_job, Path("job.yaml"))
    assert error.field == "job file"
    assert says in str(error)
    assert not Path("owned").exists()


def test_aliases_and_merged_mappings_still_work(workdir: Path) -> None:
    Path("job.yaml").write_text("""
prompt: &p a blue background
regions:
  - &r {prompt: *p, mask: {x: 0, y: 0, width: 1, height: 1}}
  - {<<: *r, weight: 2}
""")
    job = read_job(Path("job.yaml"), ["prompt=fog"])
    assert [region.prompt for region in job.regions] == ["a blue background"] * 2
    assert job.regions[1].weight == 2
