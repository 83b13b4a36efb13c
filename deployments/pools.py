"""Work pools on a Prefect server: `control` for what starts and watches, `gpu` for what draws.

A template (`deployments/pools`) lists what can be set of a kind of pool.
`python -m prefect_regional_diffusion.deployments.pools gpu docker gpu.yaml` makes a pool in which the values of a file
are fixed: no run, deployment or schedule can then name another command, image, environment or place (`job_variables`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any, cast

import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists
from prefect.utilities.schema_tools.validation import validate
from prefect.utilities.templating import apply_values

from prefect_regional_diffusion.flows.server.local import use_auth_string
from prefect_regional_diffusion.sampling_core.errors import BadInput

KINDS = ("process", "docker", "kubernetes")
_TEMPLATES = Path(__file__).parent / "pools"
_DESCRIPTIONS = {
    "control": "Starts and watches other runs; needs no GPU",
    "gpu": "Draws; its limit is the number of runs that draw at once",
}


def template(kind: str) -> dict[str, Any]:
    """What can be set of a kind of pool: a base job template of Prefect's, with a variable for each setting."""
    return json.loads((_TEMPLATES / f"{kind}.json").read_text())


def fixed_template(kind: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """The base job template of a pool with these values, and else the defaults; runs can set nothing in it.

    Raises BadInput for values that the kind of pool does not have, or lacks.
    """
    values = values or {}
    base = template(kind)
    variables = base["variables"]
    _check(kind, values, variables)
    properties = cast("dict[str, dict[str, Any]]", variables["properties"])
    defaults = {name: schema["default"] for name, schema in properties.items() if schema.get("default") is not None}
    configuration = base["job_configuration"]
    template_env = configuration["env"] if isinstance(configuration["env"], dict) else {}
    all_values = {**defaults, **values}
    # Prefect's workers merge them so, too.
    environment = {**apply_values(template_env, all_values), **defaults.get("env", {}), **values.get("env", {})}
    configuration["env"] = environment
    return {
        "job_configuration": apply_values(configuration, {**all_values, "env": environment}),
        "variables": {"type": "object", "properties": {}, "additionalProperties": False},
    }


def _check(kind: str, values: dict[str, Any], variables: dict[str, Any]) -> None:
    properties = variables["properties"]
    for name in values:
        if name not in properties:
            raise BadInput(name, values[name], f"a setting of a {kind} pool: {', '.join(sorted(properties))}")
    for error in validate(values, variables, allow_none_with_default=True):
        field = ".".join(map(str, error.absolute_path)) or "settings"
        allowed = f"as in deployments/pools/{kind}.json ({error.message})"
        raise BadInput(field, values.get(field, ", ".join(values) or "none"), allowed)


async def ensure_pool(client: PrefectClient, name: str, kind: str, base: dict[str, Any], limit: int | None) -> None:
    """Create a pool. One that exists gets the template and keeps its limit, which may have been tuned."""
    try:
        await client.create_work_pool(
            WorkPoolCreate(
                name=name,
                type=kind,
                description=_DESCRIPTIONS.get(name),
                base_job_template=base,
                concurrency_limit=limit,
            )
        )
    except ObjectAlreadyExists:
        await client.update_work_pool(name, WorkPoolUpdate(base_job_template=base))


def _read(file: Path) -> dict[str, Any]:
    values: object = yaml.safe_load(file.read_text())
    if not isinstance(values, dict):
        raise BadInput(str(file), values, "a mapping of names to values")
    return cast("dict[str, Any]", values)


async def _main(name: str, kind: str, base: dict[str, Any], limit: int | None) -> None:
    use_auth_string()
    async with get_client() as client:
        await ensure_pool(client, name, kind, base, limit)


def main() -> None:
    """Make a pool on the server of PREFECT_API_URL, or bring it up to date."""
    parser = argparse.ArgumentParser(
        prog="python -m prefect_regional_diffusion.deployments.pools", description=(main.__doc__ or "")
    )
    parser.add_argument("name", help="of the pool: gpu, control")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("settings", nargs="?", type=Path, help="YAML file: values of what the kind's template lists")
    parser.add_argument("--limit", type=int, help="runs at once, for a new pool [no limit]")
    arguments = parser.parse_args()
    try:
        base = fixed_template(arguments.kind, _read(arguments.settings) if arguments.settings else None)
    except (OSError, yaml.YAMLError, BadInput) as error:
        sys.exit(str(error))
    asyncio.run(_main(arguments.name, arguments.kind, base, arguments.limit))
    print(f"pool {arguments.name}: set up")


if __name__ == "__main__":
    main()
