"""From flags to a job."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from launcher.environment import travelling
from launcher.hosts.ports import check_port
from launcher.job import Job, existing_script, parse_environment
from launcher.place import Place
from launcher.run_folder import RunFolder


def make_job(
    options: argparse.Namespace, where: Place, folder: RunFolder | None, environment: Mapping[str, str]
) -> Job:
    """The job that the flags ask for; `environment` is the one the launcher was started in.

    Without a script (to check hosts) it is a job of nothing. Raises `LauncherError`.
    """
    script, arguments = Path(), options.script[1:]
    if options.script:
        script = existing_script(options.script[0])
    if options.master_port is not None:
        check_port(options.master_port)
    settings = dict(parse_environment(options.env, environment))
    if where.transport.name != "local":
        settings = dict(travelling(environment)) | settings
    return Job(
        nodes=where.nodes,
        python=sys.executable,
        script=script,
        arguments=tuple(arguments),
        environment=tuple(settings.items()),
        master_address=options.master_addr,
        master_port=options.master_port or 0,
        logs=None if folder is None else folder.logs.absolute(),
    )
