"""Imports run in one direction between the rooms."""

import ast
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Room -> rooms it may not know of. A room is a file or a folder of medsft.
COMMANDS = {"train", "cli"}
RUN = {"engine", "checkpoint", "monitor", "evaluation", "inference", "training", *COMMANDS}
FORBIDDEN = {
    "allreduce": {"*"},
    "errors": {"*"},
    "exit_codes": {"*"},
    "files": {"*"},
    "gpus": {"chatglm", "data", "config", *RUN},
    "host_memory": {"*"},
    "config": {"chatglm", "data", *RUN},
    "chatglm": {"data", "config", *RUN},
    "data": {"config", *RUN},
    "knowledge": {"config", *RUN},
    "run_folder": {"chatglm", "data", *RUN},
    "launch": {"*"},
    "journal": {"*"},
    "terminal": {"*"},
    "pages": {"*"},
    "run_lock": {"chatglm", "data", *RUN},
    "registration": {"*"},
    "shapes": {"*"},
    "provenance": {"chatglm", "data", *RUN},
    "monitor": {"data", *RUN - {"monitor"}},
    "planner": {"config", "chatglm", *RUN},
    "engine": RUN - {"engine"},
    "checkpoint": RUN - {"engine", "checkpoint"},
    "inference": RUN - {"inference"},
    "evaluation": {"monitor", "checkpoint", "training", *COMMANDS},
    "training": {"inference", *COMMANDS},
    "train": {"cli"},
}
# The same of the parts of a training; those that no line names may know all of these.
IN_TRAINING = {
    "early_stopping": {"*"},
    "samples": {"medsft.training", "medsft.config", "medsft.checkpoint", "medsft.evaluation"},
    "fitting": {"medsft.training", "medsft.checkpoint", "medsft.monitor", "medsft.evaluation"},
    "assembly": {"medsft.training", "medsft.monitor", "medsft.evaluation"},
    "validating": {"medsft.config", "medsft.evaluation", "medsft.training.preparation"},
    "saving": {"medsft.training.fitting", "medsft.training.samples", "medsft.evaluation"},
    "preparation": {"medsft.training.samples", "medsft.training.description", "medsft.training.validating"},
    "description": {"medsft.training.samples", "medsft.training.validating", "medsft.evaluation"},
}


def imported_modules(path: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def rooms_of(package: str) -> dict[str, list[Path]]:
    """Room -> its files."""
    rooms: dict[str, list[Path]] = {}
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        parts = path.relative_to(REPOSITORY / package).with_suffix("").parts
        rooms.setdefault(parts[0], []).append(path)
    return rooms


MEDSFT = rooms_of("medsft")


@pytest.mark.parametrize("room", sorted(set(MEDSFT) - {"__init__", "cli"}))
def test_a_room_knows_only_the_rooms_below(room):
    forbidden = FORBIDDEN[room]
    for path in MEDSFT[room]:
        known = {name.split(".")[1] for name in imported_modules(path) if name.startswith("medsft.")}
        bad = (known - {room}) if "*" in forbidden else known & forbidden
        assert not bad, f"{path.relative_to(REPOSITORY)} imports {sorted(bad)}"


@pytest.mark.parametrize("part", sorted(IN_TRAINING))
def test_a_part_of_a_training_knows_only_the_parts_below(part):
    names = imported_modules(REPOSITORY / "medsft" / "training" / f"{part}.py")
    forbidden = {"medsft"} if "*" in IN_TRAINING[part] else IN_TRAINING[part]
    bad = {name for name in names for room in forbidden if f"{name}.".startswith(f"{room}.")}
    assert not bad, f"medsft/training/{part}.py imports {sorted(bad)}"


def test_launcher_and_medsft_never_import_each_other():
    for package, other in (("launcher", "medsft"), ("medsft", "launcher")):
        for path in (REPOSITORY / package).rglob("*.py"):
            assert other not in {name.split(".")[0] for name in imported_modules(path)}, path


def test_the_launcher_needs_the_standard_library_only():
    for path in (REPOSITORY / "launcher").rglob("*.py"):
        outside = (
            {name.split(".")[0] for name in imported_modules(path)}
            - set(sys.stdlib_module_names)
            - {"launcher"}
        )
        assert not outside, f"{path.relative_to(REPOSITORY)} imports {outside}"


def test_nobody_runs_remote_code_or_loads_pickles():
    for path in (REPOSITORY / "medsft").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path
