"""Why a host gave no answer, in words for people."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.shell import Done


@dataclass(frozen=True)
class Trouble:
    """`found` is a clause, `remedy` a sentence."""

    found: str
    remedy: str


# Words of OpenSSH's standard error -> what they mean. The first that fits counts.
_SSH_TROUBLES = (
    (
        "Host key verification failed",
        "ssh does not know the host's key, or the host has another one than before",
        "Connect once by hand (`ssh HOST`) and compare the key; once reinstalled: `ssh-keygen -R HOST`.",
    ),
    (
        "Permission denied",
        "ssh refuses the key",
        "Put the public key into ~/.ssh/authorized_keys there (`ssh-copy-id HOST`); `ssh HOST true` must "
        "work without a password.",
    ),
    (
        "Too many authentication failures",
        "ssh refuses the keys offered to it",
        "Name the right key in ~/.ssh/config: IdentityFile and IdentitiesOnly yes.",
    ),
    (
        "Could not resolve hostname",
        "the name is unknown here",
        "Mind its spelling in the hostfile; it must be in DNS, /etc/hosts or ~/.ssh/config.",
    ),
    (
        "Connection refused",
        "the host answers, but no ssh server does",
        "Start sshd there, or give its Port in ~/.ssh/config.",
    ),
    (
        "No route to host",
        "there is no way to the host through the network",
        "See whether it is up and its link and firewall are in order (`ping HOST`).",
    ),
    (
        "Network is unreachable",
        "there is no way to the host through the network",
        "See whether this machine has an address in the host's network.",
    ),
    (
        "timed out",
        "no connection within the time limit",
        "See whether the host is up, and whether a firewall drops ssh (`ping HOST`, `ssh HOST true`).",
    ),
    (
        "Connection closed by",
        "the ssh server closed the connection",
        "See its log (`journalctl -u ssh`): MaxStartups, AllowUsers, or a full disk.",
    ),
    (
        "Connection reset by",
        "the ssh server closed the connection",
        "See its log (`journalctl -u ssh`): MaxStartups, AllowUsers, or a full disk.",
    ),
)
_SRUN_TROUBLES = (
    (
        "Unable to create step",
        "Slurm starts no step there",
        "See `sinfo -N` for its state, and whether an older step holds the host (`squeue -s`).",
    ),
    (
        "Requested node configuration is not available",
        "the host is not in this allocation",
        "Take hosts of this allocation (`scontrol show hostnames`).",
    ),
    (
        "Unable to confirm allocation",
        "this is no Slurm allocation that still runs",
        "Start from within sbatch or salloc.",
    ),
)
_SSH_FAILED = 255
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127


def explain(host: str, done: Done, limit_s: float, program: str) -> Trouble:
    """Why `program`, started there by a shell, did not do its work: for any code but 0."""
    said = last_words(done.stderr) or last_words(done.stdout) or "nothing"
    if done.code is None:
        return Trouble(
            f"no answer within {limit_s:g} s",
            "See whether the host hangs (load, a dead network mount) with `ssh "
            f"{host} true`; leave it out of the hostfile until it answers.",
        )
    for words, found, remedy in (*_SSH_TROUBLES, *_SRUN_TROUBLES):
        if words in done.stderr and (done.code == _SSH_FAILED or (words, found, remedy) in _SRUN_TROUBLES):
            return Trouble(f"{found} ({said})", remedy.replace("HOST", host))
    if done.code in (_NOT_FOUND, _NOT_EXECUTABLE):
        return Trouble(
            f"{program} cannot be started there ({said})",
            "Install the same environment at the same path on every host, best on a shared file system.",
        )
    if done.code == _SSH_FAILED:
        return Trouble(f"ssh failed: {said}", f"`ssh {host} true` must work without a password.")
    return Trouble(
        f"{program} ended there with code {done.code}: {said}",
        f"Run it by hand on {host} to see all of it.",
    )


def last_words(text: str, most: int = 200) -> str:
    """The last line that is not blank, cut to `most` characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:most] if lines else ""
