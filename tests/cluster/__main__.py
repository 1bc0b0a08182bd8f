"""The test cluster for people; see README.md. The scripts `up`, `down` and `on` call this."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from cluster import Cluster, ClusterError, Description

FOLDER = Path("/tmp/medsft-cluster")


def main() -> int:
    """Does what the first argument says; 1 when that failed."""
    parser = argparse.ArgumentParser(prog="tests/cluster", description="Several hosts on one machine.")
    folder = Path(os.environ.get("CLUSTER_FOLDER", FOLDER))
    parser.add_argument("--folder", type=Path, default=folder, help=f"of the cluster (default: {folder})")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring a cluster up, after what a former one left is gone")
    up.add_argument("num_hosts", type=int, nargs="?", default=3, help="hosts: node1, node2 … (default: 3)")
    commands.add_parser("down", help="end everything that runs on the hosts and remove them")
    on = commands.add_parser("on", help="run a command on a host")
    on.add_argument("host")
    on.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="default: a shell")
    commands.add_parser("watch", help="bring the cluster down when standard input ends")
    options = parser.parse_args()

    try:
        match options.command:
            case "up":
                cluster = Cluster(Description(options.folder.resolve(), options.num_hosts))
                cluster.up()
                print(f"up: {', '.join(cluster.names)}. For a shell on one: tests/cluster/on node1")
            case "down":
                Cluster.of(options.folder.resolve()).down()
            case "on":
                cluster = Cluster.of(options.folder.resolve())
                cluster.replace_by(options.host, options.words or ["bash"])
            case "watch":
                sys.stdin.read()
                if options.folder.exists():
                    Cluster.of(options.folder).down()
    except (ClusterError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
