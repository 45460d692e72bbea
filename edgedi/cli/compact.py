"""edgedi-compact: a smaller network that answers as well, in a folder from which ``edgedi.load`` brings it back.

The table goes to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedi.cli.ending import INTERRUPTED, ended_by_signals
from edgedi.cli.options import shapes
from edgedi.errors import EdgediError, like
from edgedi.runtime.version import software_version

WRONG_USE = 2
DATA = ("calibration", "train", "validate")
"""What --data may give, besides ``BESIDES``: at least one of these."""
BESIDES = ("metric", "loss", "example_inputs")
_OPTIONS = ("steps", "tolerance", "method", "target", "scar_ratio", "budget_s", "seed", "checkpoint")
"""Those that are handed on as they are, where they were given."""
_TARGETS = ("macs", "parameters")
"""What --target may be of: the command starts without what ``compact`` needs."""
_DEFAULT_SHAPE = (1, 3, 224, 224)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="edgedi-compact",
        description="Make a network smaller that answers as well, and save it with a report of what was done.",
        epilog="Exit code: 0, 2 for what prevents running or ends it early, 130 after Ctrl-C. Then the folder is as it "
        "was.",
        allow_abbrev=False,
    )
    made.add_argument("--model", metavar="NAME", help="module:callable that returns a model with its weights, or "
                      "torchvision:resnet50 (random weights)")  # fmt: skip
    made.add_argument("--data", metavar="NAME", help="module:callable that returns a dictionary, or an object, with "
                      f"any of {', '.join(DATA + BESIDES)}; without it only the exact step runs")  # fmt: skip
    made.add_argument("--input", type=shapes, metavar="SHAPE", help="a random example such as 1x3x224x224 (default); "
                      "several by commas. The saved network takes inputs of these shapes only")  # fmt: skip
    made.add_argument("--out", type=Path, metavar="FOLDER", help="where model.pt2, weights.safetensors, program.json, "
                      "report.json and report.html go")  # fmt: skip
    made.add_argument("--force", action="store_true", help="replace these files in a folder that holds something")
    made.add_argument("--steps", type=_names, metavar="NAME,...", help="of the steps of compact (default: all that "
                      "there is data for)")  # fmt: skip
    made.add_argument("--tolerance", type=_fall, metavar="NUMBER", help="by how much the metric may fall (default 0, "
                      "without labels to tell 0.03 of the answers; 0.01 is one point of accuracy)")  # fmt: skip
    made.add_argument("--target", type=_target, metavar="SHARE", help="of the original's multiplications, reached "
                      "whatever the metric says, or an error (--method l1 goes as far as the metric allows); 0.5 is "
                      "half, parameters=0.1 a tenth of the parameters, macs=0.2,parameters=0.1 asks for both "
                      "(default: as few as the metric allows)")  # fmt: skip
    made.add_argument("--method", choices=("reconstruct", "l1"), help="how layers are narrowed: by what others can "
                      "make up for (default), or the published rule")  # fmt: skip
    made.add_argument("--scar-ratio", type=_ratio, metavar="RATIO", help="of SCAR blocks: 4, 8, or auto, each layer "
                      "its own (default)")  # fmt: skip
    made.add_argument("--budget", type=_seconds, dest="budget_s", metavar="SECONDS", help="how long it may take "
                      "(default: 1,000 steps of each training); a --target takes as long as it needs")  # fmt: skip
    made.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="keep what there is, after each step and once "
                      "a minute; the same command goes on there after a kill, to the same result unless --budget "
                      "is given")  # fmt: skip
    made.add_argument("--seed", type=_whole, metavar="N", help="same seed, same result, unless --budget has the clock "
                      "count the steps of training (default 0)")  # fmt: skip
    made.add_argument("--version", action="version", version=f"edgedi {software_version()}")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return an exit code, see ``parser``."""
    arguments = _read(argv)
    try:
        with ended_by_signals():
            return _compact(arguments)
    except KeyboardInterrupt:
        print("edgedi-compact: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (EdgediError, ValueError, TypeError, OSError) as error:
        print(f"edgedi-compact: {error}", file=sys.stderr)
        return WRONG_USE


def _read(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser()
    arguments, unknown = made.parse_known_args(argv)
    if unknown:
        options = [option for action in made._actions for option in action.option_strings]
        made.error(f"there is no {unknown[0]}{like(unknown[0], options)}")
    for name, what in (("model", "module:callable or torchvision:NAME"), ("out", "a folder")):
        if getattr(arguments, name) is None:
            made.error(f"--{name} is missing; give {what}")
    return arguments


def _compact(arguments: argparse.Namespace) -> int:
    _say("loading torch")
    from edgedi.bench.networks import load_network
    from edgedi.transforms.arguments import NEEDS, arguments_of
    from edgedi.transforms.compact import compact
    from edgedi.transforms.saved.folder import check_free, save

    for step in arguments.steps or ():
        if step not in NEEDS:
            raise ValueError(f"--steps: there is no {step!r} among {', '.join(NEEDS)}{like(step, NEEDS)}")
    check_free(arguments.out, overwrite=arguments.force)
    model = load_network(arguments.model)
    given = _data(arguments.data)
    inputs = _inputs(arguments, given.pop("example_inputs", None))
    options = {name: getattr(arguments, name) for name in _OPTIONS if getattr(arguments, name) is not None}
    _check(model, arguments_of(inputs))
    small = compact(model, inputs, **given, **options, progress=_say)
    print(small.compaction)
    save(small, arguments.out, inputs, overwrite=arguments.force)
    _say(f"wrote {', '.join(sorted(path.name for path in arguments.out.iterdir()))} to {arguments.out}")
    return 0


def _check(model: Any, arguments: tuple[Any, ...]) -> None:
    """What does not run, or cannot be saved, is told before the work and not after it."""
    from edgedi.transforms.measure import answer_of
    from edgedi.transforms.saved.exporting import export

    try:
        answer_of(model, arguments)
    except Exception as error:  # a user's own code may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"the model does not take the example; give --input or example_inputs ({reason})") from error
    export(model, arguments)


def _say(line: str) -> None:
    print(f"edgedi-compact: {line}", file=sys.stderr, flush=True)


def _data(name: str | None) -> dict[str, Any]:
    """What --data gives, by the names of compact's arguments."""
    if name is None:
        return {}
    from edgedi.bench.networks import result_of

    result, accepted = result_of(name, "--data"), DATA + BESIDES
    if isinstance(result, Mapping):
        for key in result:
            if key not in accepted:
                near = like(str(key), accepted)
                raise ValueError(f"--data {name}: it holds {key!r}{near}; accepted are {', '.join(accepted)}")
        found = dict(result)
    else:
        found = {key: getattr(result, key) for key in accepted if hasattr(result, key)}
    found = {key: value for key, value in found.items() if value is not None}
    if not any(key in found for key in DATA):
        kind = type(result).__name__
        raise ValueError(f"--data {name}: it returned a {kind} without data; give at least one of {', '.join(DATA)}")
    return found


def _inputs(arguments: argparse.Namespace, example: Any) -> Any:
    if example is not None:
        if arguments.input is not None:
            raise ValueError("--input and example_inputs of --data are both given; leave one of them out")
        return example
    from edgedi.bench.networks import random_input

    return tuple(random_input(shape) for shape in arguments.input or (_DEFAULT_SHAPE,))


# --- reading options --------------------------------------------------------------------------------------------------


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _fall(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return value


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _target(text: str) -> dict[str, float]:
    pairs = [part.split("=", 1) for part in text.split(",")] if "=" in text else [["macs", text]]
    if any(len(pair) != 2 or pair[0].strip() not in _TARGETS for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not {' or '.join(f'{name}=SHARE' for name in _TARGETS)}")
    for _, share in pairs:
        if not 0 < _number(share) <= 1:
            raise argparse.ArgumentTypeError(f"{share!r} is not a share above 0, at most 1")
    return {name.strip(): _number(share) for name, share in pairs}


def _ratio(text: str) -> int | str:
    if text not in ("auto", "4", "8"):
        raise argparse.ArgumentTypeError(f"{text!r} is not 4, 8 or auto")
    return text if text == "auto" else int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
