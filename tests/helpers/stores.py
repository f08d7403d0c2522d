"""An S3 of our own, on the loopback address, for as long as a test module needs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

BUCKET = "bucket"


# In a process of its own: vLLM, started later in the process that imported moto, looks at every
# module's names, and those of flask raise.
_SERVER = """
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
input()
server.stop()
"""


@contextmanager
def s3_server() -> Iterator[str]:
    """Start moto's server, make a bucket, and point whatever speaks S3 at it; its address."""
    command = [sys.executable, "-W", "ignore", "-c", _SERVER]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    host, port = server.stdout.readline().split()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": host,
        "no_proxy": host,
    }
    try:
        with patch.dict(os.environ, settings):
            _make_bucket()
            yield settings["AWS_ENDPOINT_URL"]
    finally:
        server.communicate("\n", timeout=30)


def _make_bucket() -> None:
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # those made before know another address
    S3FileSystem().makedirs(BUCKET, exist_ok=True)
