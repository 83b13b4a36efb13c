"""A real S3 server over HTTP, for tests: moto's, with buckets of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from tests.processes import free_port, stop

KEY, SECRET = "AKIAHUNTERHUNTERHUNT", "hunter2-very-secret-hunter2"


@contextmanager
def s3_server(folder: Path, *buckets: str) -> Generator[int]:
    """Its port on loopback; the log is in `folder`."""
    port = free_port()
    moto = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with serving(moto, port, folder, *buckets):
        yield port


@contextmanager
def serving(command: Sequence[str], port: int, folder: Path, *buckets: str) -> Generator[None]:
    """An S3 server that runs for as long as the block, with buckets. Its log is in `folder`."""
    with (folder / "s3.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline, (folder / "s3.log").read_text()
            time.sleep(0.1)
        for bucket in buckets:
            client(f"http://127.0.0.1:{port}").create_bucket(Bucket=bucket)
        yield
    finally:
        stop(server)


def client(endpoint: str) -> Any:
    """A client that shares nothing with the code under test but the keys."""
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
    )


def objects(endpoint: str, bucket: str, prefix: str) -> dict[str, int]:
    """Keys below a prefix, with their sizes."""
    pages = client(endpoint).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}
