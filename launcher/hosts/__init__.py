"""Where a job runs: hostfiles, Slurm allocations, slots, addresses and ports."""
