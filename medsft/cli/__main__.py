"""`python -m medsft.cli`: the `medsft` command where it is not installed."""

from __future__ import annotations

from medsft.cli import main

if __name__ == "__main__":
    main()
