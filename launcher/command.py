"""One process to start, as data: built by pure functions, run in one place."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

# The last one carries the token of the launch to its agents, and the whole environment.
_SECRET = re.compile(
    r"TOKEN|SECRET|PASS|PWD|CREDENTIAL|AUTH|(^|_)KEY(_|$)|APIKEY|^MEDSFT_AGENT$", re.IGNORECASE
)
# https://user:password@host
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(frozen=True)
class Command:
    """`name` is what people read ("rank 0"); `environment` is added to the launcher's own."""

    name: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]

    def shown(self) -> str:
        """The command as a line for a shell, secret-looking values left out."""
        settings = (
            f"{name}={'***' if _SECRET.search(name) else shlex.quote(_LOGIN.sub('***@', value))}"
            for name, value in self.environment
        )
        return " ".join(["env", *settings, shlex.join(self.arguments)])
