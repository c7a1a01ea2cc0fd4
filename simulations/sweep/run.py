"""dsm-sweep: what privacy costs. Many private simulations, training without privacy beside them, one table, one curve.

dsm-sweep quick                                    two generated sites, minutes
dsm-sweep full                                     epsilon 1, 2, 4, 8, infinity; three seeds; 64 patients a site
dsm-sweep full privacy.trained=everything,adapters any key of dsm-simulate, with commas for several values
dsm-sweep full sites_dir=DIR eval_dir=DIR          your own folders instead of generated sites
dsm-sweep full name=NAME                           the same command again goes on with what is missing
dsm-sweep full dry_run=true                        which runs there would be

privacy.epsilon=0,1,8,inf     0 scores the public start alone, inf trains without privacy
public.KEY=VALUE              settings of the run on public (generated) data that all runs start from
public.checkpoint=FOLDER      a public checkpoint to start from instead
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dsm_core.config import ConfigError
from simulations.provenance import portable_command, portable_word, source_commit
from simulations.results import write_atomically
from simulations.run import FULL
from simulations.sweep.audited import audited_bounds
from simulations.sweep.plan import ALONE, CHECKPOINT, Plan, Point, SweepError, plan_sweep
from simulations.sweep.report import write_report
from simulations.sweep.results import FAILED, group_rows, read_rows
from simulations.sweep.runs import PUBLIC_RUN, Folder, do_run, only_one, path_word, time_left_s
from simulations.sweep.table import format_rows, write_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of dsm-sweep; 0 when every run is done, 1 when one failed, 2 on bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or any(word in ("-h", "--help", "help") for word in words):
        print(__doc__)
        return 0
    try:
        plan = plan_sweep(words)
        _print_plan(plan)
        folder = Folder(Path(plan.out) / "sweeps" / (plan.name or time.strftime("%Y-%m-%d_%H-%M-%S")))
        _refuse_other_settings(folder, plan)
        _check(plan, [point for point in plan.points if not folder.is_finished(point.name)])
        audited_bounds(folder)
        if plan.dry_run:
            print("dry run: nothing trained, nothing written")
            return 0
        with only_one(folder) as lock:
            about = _begin(folder, plan, words)
            if reason := _pretrain(folder, plan, lock):
                print(
                    f"dsm-sweep: the run on public data failed, so no run can start from it: {reason}", file=sys.stderr
                )
                return 1
            _do_all(folder, plan, about, lock)
            return _conclude(folder, plan, about, say=print)
    except ConfigError as error:
        print(f"dsm-sweep: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dsm-sweep: stopped; the same command again goes on with what is missing", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(
            f"dsm-sweep: {error.strerror}; make room on the disk of {folder.path}, then say the same again",
            file=sys.stderr,
        )
        return 1


def _print_plan(plan: Plan) -> None:
    if plan.public:
        print(f"public start: {' '.join(plan.public)}")
    elif plan.checkpoint:
        print(f"public start: {plan.checkpoint}")
    for point in plan.points:
        print(f"{point.kind:<12} {point.name}")
    print(f"{len(plan.points)} runs", flush=True)


def _check(plan: Plan, points: Sequence[Point]) -> None:
    """Refuse, before hours of training, what every run would refuse: sites' own ledgers, folders, too large steps."""
    from client.ledger import LedgerFault
    from dsm_core.data import DatalistError  # MONAI takes seconds to import
    from simulations.sweep.data_check import check_data
    from simulations.sweep.own_ledgers import check_own_ledgers

    try:
        for line in check_own_ledgers(points):
            print(line, flush=True)
        if plan.checkpoint and not (Path(plan.checkpoint) / "model.json").is_file():
            raise SweepError(f"{CHECKPOINT}{plan.checkpoint} holds no model.json; name a folder of a run's checkpoints")
        trained = [point.words for point in points if point.epsilon != ALONE]
        check_data([*trained, *([plan.public] if plan.public else [])])
    except LedgerFault as fault:
        raise SweepError(f"{fault}") from fault
    except DatalistError as error:
        raise SweepError(f"{error}\n{error.details()}") from error


def _refuse_other_settings(folder: Folder, plan: Plan) -> dict[str, Any] | None:
    """What `sweep.json` holds; None where there is none.

    Raises:
        SweepError: the folder holds a sweep with other fixed words, or the file is damaged.
    """
    if not folder.about.exists():
        return None
    try:
        about = json.loads(folder.about.read_text(encoding="utf-8"))
        there, asked = set(about["fixed"]), set(_fixed(plan))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SweepError(
            f"{folder.about} cannot be read ({error}); put back its copy, or choose another name="
        ) from error
    if there != asked:
        raise SweepError(
            f"{folder.path} holds a sweep with other settings: there {', '.join(sorted(there - asked)) or 'fewer'}; "
            f"asked for {', '.join(sorted(asked - there)) or 'fewer'}; choose another name="
        )
    return about


def _fixed(plan: Plan) -> list[str]:
    return [portable_word(word) for word in plan.fixed]


def _begin(folder: Folder, plan: Plan, words: Sequence[str]) -> dict[str, Any]:
    """Write `sweep.json`, or go on with a sweep of the same fixed words."""
    if about := _refuse_other_settings(folder, plan):
        return about
    about = {"name": folder.path.name, "command": portable_command(["dsm-sweep", *words]), "commit": source_commit()[0]}
    about["fixed"] = _fixed(plan)
    write_atomically(folder.about, json.dumps(about, indent=1) + "\n")
    return about


def _pretrain(folder: Folder, plan: Plan, lock: int) -> str | None:
    """Train the public start, unless it is there; returns why it failed."""
    if not plan.public or folder.is_finished(PUBLIC_RUN):
        return None
    with tqdm(desc="public start", bar_format="{desc} {elapsed} | {postfix}") as bar:
        return do_run(folder, PUBLIC_RUN, plan.public, False, Path(plan.out), bar.set_postfix_str, lock)


def _do_all(folder: Folder, plan: Plan, about: dict[str, Any], lock: int) -> None:
    start = _start(folder, plan)
    missing = [point for point in plan.points if not folder.is_finished(point.name)]
    with tqdm(total=len(plan.points), initial=len(plan.points) - len(missing), bar_format=_BAR) as bar:
        for point in missing:
            infos = {p.name: folder.run_info(p.name) for p in plan.points if folder.is_finished(p.name)}
            bar.set_description_str(f"{point.name} ({_shown_time(time_left_s(plan.points, infos))})")
            reason = do_run(
                folder, point.name, [*point.words, *start], point.kind == "private", Path(plan.out),
                bar.set_postfix_str, lock,
            )  # fmt: skip
            if reason:
                bar.write(f"{point.name} failed: {reason}")
            bar.update()
            _conclude(folder, plan, about)


_BAR = "{n_fmt}/{total_fmt} runs, {elapsed} | {desc} | {postfix}"


def _start(folder: Folder, plan: Plan) -> list[str]:
    checkpoint = folder.public_checkpoint if plan.public else plan.checkpoint
    return [path_word("start", checkpoint)] if checkpoint else []


def _conclude(folder: Folder, plan: Plan, about: dict[str, Any], say: Any = None) -> int:
    """Write table and report of what is done; 1 where a run failed."""
    rows = read_rows(folder, plan)
    groups = group_rows(rows)
    write_table(folder, rows, groups)
    report = write_report(folder, about, rows, groups)
    if say:
        say(format_rows(groups, rows))
        say(f"report: {report}")
    return int(any(row.status == FAILED for row in rows))


def _shown_time(seconds: float | None) -> str:
    return "time left is known after the first run" if seconds is None else f"about {math.ceil(seconds / 60)} min left"


if __name__ == "__main__":
    raise SystemExit(main())
