"""One rank under mpirun: openmpi_worker.py EXIT_CODE ADDRESS,ADDRESS… …

Rank 1 plays another host. Prints on which of rank 0's ADDRESSes both agree, list after list, then ends as
ranks do.
"""

import os
import sys

from mpi4py import MPI

from medsft.engine.openmpi import agree_on_master
from medsft.errors import UserError


def main(exit_code, *lists):
    rank = MPI.COMM_WORLD.Get_rank()
    for addresses in lists:
        try:
            own = addresses.split(",") if rank == 0 else ["127.0.0.9"]
            address, port = agree_on_master(MPI.COMM_WORLD, own)
            said = f"rank {rank}: {address} {0 < port < 65536}"
        except UserError as error:
            said = f"rank {rank}: {error}"
        os.write(1, f"{said}\n".encode())
    MPI.Finalize()
    os._exit(int(exit_code))


if __name__ == "__main__":
    main(*sys.argv[1:])
