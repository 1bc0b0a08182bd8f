"""One rank of `benchmarks/startup.py`: train.py with its parts timed up to the end of the first step.

    MARKS=FILE python benchmarks/startup_rank.py --model_name_or_path MODEL …

Rank 0 writes what it found as JSON to the file that MARKS names: seconds since the epoch at which its first
line ran, and seconds of each part.
"""

import time

BEGAN_S = time.time()

import importlib  # noqa: E402  what follows is what is timed
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

SECONDS: dict[str, float] = {}


def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its seconds noted as those of `part`; what comes between the parts is left over."""

    def measured(*arguments: Any, **more: Any) -> Any:
        begin_s = time.time()
        try:
            return function(*arguments, **more)
        finally:
            SECONDS[part] = SECONDS.get(part, 0.0) + time.time() - begin_s

    return measured


def main() -> int:
    """Imports and runs the training."""
    for module in ("torch", "transformers", "medsft.train", "deepspeed"):
        timed(f"import {module}", importlib.import_module)(module)
    from medsft import train
    from medsft.engine import process
    from medsft.training import assembly

    process.start = timed("join the other ranks", process.start)
    assembly.open_base = timed("open model and tokenizer", assembly.open_base)
    assembly.encode_data = timed("tokenise", assembly.encode_data)
    assembly.prepare_ops = timed("compile ops", assembly.prepare_ops)
    assembly.build_partitioned = timed("build the model", assembly.build_partitioned)
    assembly.load_slices = timed("read weights", assembly.load_slices)
    assembly.start_engine = timed("start DeepSpeed", assembly.start_engine)
    first_step = train.TrainStep.__call__

    def step(*arguments: Any, **more: Any) -> Any:
        result = timed("first step", first_step)(*arguments, **more)
        train.TrainStep.__call__ = first_step
        if os.environ.get("RANK", "0") == "0":
            found = {"began": BEGAN_S, "ended": time.time(), "seconds": SECONDS}
            Path(os.environ["MARKS"]).write_text(json.dumps(found), encoding="utf-8")
        return result

    train.TrainStep.__call__ = step
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
