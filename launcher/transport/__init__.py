"""Ways to get a job onto its nodes.

`local` starts ranks itself. `pdsh`, `openmpi` and `slurm` are data for `remote`, which starts an agent on
each host by them.
"""

from launcher.transport.base import Transport
from launcher.transport.local import LOCAL
from launcher.transport.openmpi import OPENMPI
from launcher.transport.pdsh import PDSH
from launcher.transport.slurm import SLURM

TRANSPORTS: dict[str, Transport] = {transport.name: transport for transport in (LOCAL, PDSH, OPENMPI, SLURM)}
