"""A simulation that is killed goes on and ends with the very bits of one that was not.

Each life of a run is a process of its own, forked so that nothing is imported twice, and killed with SIGKILL.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch.utils.tensorboard  # noqa: F401  loaded before the lives are forked, not by each of them

import simulations.stages  # noqa: F401
from simulations.run import main

ROUNDS = 6
SMALL = [
    "sites=2", "rounds=2", "prior.rounds=2", "tumors.rounds=2", "train.local_steps=1", "train.crops=2",
    "data.crop=[16,16,16]", "model.prior_widths=[8,8,8]", "model.lesion_width=8", "train.batch=1", "phantom.cases=2",
    "phantom.held_out=1",
    "data.spacing_mm=[8,8,8]", "data.patch=[32,32,32]", "model.widths=[8,8,16,16]", "model.mamba_blocks=[0,0,0,1]",
    "model.decoder_width=16", "model.query_width=16", "model.mask_width=8", "threads=1", "overlays=1",
]  # fmt: skip
DEADLINE_S = 600.0


def start(words):
    """A life of a run: the process id of `dsm-simulate` with these words."""
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(f"{Path(words[-1].partition('=')[2]).name}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)  # pytest's own would take what is said here
        code = 99
        try:
            code = main(words)
        finally:
            os._exit(code)
    return process


def live(words):
    """The exit code of a life that nobody ends."""
    return os.waitstatus_to_exitcode(os.waitpid(start(words), 0)[1])


def rounds_in(run, method="federated"):
    try:
        lines = (run / "history.jsonl").read_text().splitlines()
        return sum(json.loads(line)["method"] == method for line in lines)
    except (FileNotFoundError, ValueError):
        return 0


def wait_for_rounds(process, run, rounds, method="federated"):
    """Wait for so many rounds of a method; False where the process has ended before."""
    deadline = time.monotonic() + DEADLINE_S
    while not (run / "state" / "config.json").exists() or rounds_in(run, method) < rounds:
        assert time.monotonic() < deadline, f"round {rounds} was not reached in {DEADLINE_S:g} s"
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.005)
    return True


def kill_after(words, run, rounds, pause_s, method="federated"):
    """Start a life and kill it some time after so many rounds of a method; False where it had ended by itself."""
    process = start(words)
    if not wait_for_rounds(process, run, rounds, method):
        return False
    time.sleep(pause_s)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def results(run):
    models = [(run / "checkpoints" / name / "model.safetensors").read_bytes() for name in ("last", "best")]
    about = [json.loads((run / "checkpoints" / name / "model.json").read_text())["extra"] for name in ("last", "best")]
    return models, about, json.loads((run / "matrix.json").read_text())


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    before = Path.cwd()
    os.chdir(root)
    yield root
    os.chdir(before)


@pytest.fixture(scope="module")
def whole(out):
    """A run that nobody killed, and the seconds of one of its rounds."""
    assert live([*SMALL, "compare=none", f"out={out}", "name=whole"]) == 0
    lines = [json.loads(line) for line in (out / "whole" / "history.jsonl").read_text().splitlines()]
    return out / "whole", max(line["seconds"] for line in lines)


def killed_and_resumed(out, whole, name, trial):
    """Kill a run at a point drawn from the trial's number, let it go on, and compare; the round it was killed in."""
    draw, run = np.random.default_rng([trial]), out / name
    rounds, pause_s = int(draw.integers(0, ROUNDS)), float(draw.uniform(0, whole[1]))
    assert kill_after([*SMALL, "compare=none", f"out={out}", f"name={name}"], run, rounds, pause_s)
    done = rounds_in(run)
    assert live([f"resume={run}"]) == 0, (out / f"{name}.err").read_text()[-2000:]
    assert results(run) == results(whole[0])
    history = [json.loads(line)["round"] for line in (run / "history.jsonl").read_text().splitlines()]
    assert history == list(range(1, ROUNDS + 1))
    assert not (run / "state").exists()
    return done + 1


def test_killed_run_goes_on_bit_for_bit(out, whole):
    killed_and_resumed(out, whole, "killed", trial=1)


@pytest.mark.slow
def test_twenty_runs_killed_at_random_points_go_on_bit_for_bit(out, whole):
    rounds = [killed_and_resumed(out, whole, f"trial{trial}", trial) for trial in range(2, 22)]
    assert len(set(rounds)) > 3


@pytest.mark.slow
def test_run_killed_in_life_after_life_still_ends_with_the_same_bits(out, whole):
    run, words = out / "often", [*SMALL, "compare=none", f"out={out}", "name=often"]
    for rounds in (1, 3, 5):
        assert kill_after(words, run, rounds, pause_s=whole[1] / 2)
        words = [f"resume={run}"]
    assert live(words) == 0
    assert results(run) == results(whole[0])


@pytest.mark.slow
def test_moments_kept_at_the_sites_go_on_bit_for_bit_too(out):
    words = [*SMALL, "compare=all", f"out={out}"]
    assert live([*words, "name=all"]) == 0
    assert kill_after([*words, "name=baseline"], out / "baseline", 3, 0.05, method="fedavg")
    assert live([f"resume={out / 'baseline'}"]) == 0, (out / "baseline.err").read_text()[-2000:]
    assert results(out / "baseline") == results(out / "all")
    for run in ("all", "baseline"):
        methods = [json.loads(line)["method"] for line in (out / run / "history.jsonl").read_text().splitlines()]
        assert {method: methods.count(method) for method in sorted(set(methods))} == {
            "federated": ROUNDS, "fedavg": ROUNDS, "local": 2 * ROUNDS, "pooled": 2 * ROUNDS,
        }  # fmt: skip


def test_full_disk_stops_a_run_in_words_and_once_there_is_room_it_goes_on_bit_for_bit(out, whole):
    disk = out / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", f"{disk}"]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may mount no disk of its own, so none can be filled")
    try:
        run, filler = disk / "full", disk / "filler"
        process = start([*SMALL, "compare=none", f"out={disk}", "name=full"])
        assert wait_for_rounds(process, run, 2)
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1
        said = (out / "full.err").read_text()
        assert "dsm-simulate: the run failed: " in said
        assert "No space left on device" in said
        assert "Traceback" not in said
        filler.unlink()
        assert live([f"resume={run}"]) == 0, said[-2000:]
        assert results(run) == results(whole[0])
    finally:
        subprocess.run(["umount", "--lazy", f"{disk}"], check=True)


def test_run_that_is_finished_or_given_another_configuration_is_not_gone_on_with(out, whole, capsys):
    assert main([f"resume={whole[0]}"]) == 2
    assert "the run is finished" in capsys.readouterr().err
    assert main([f"resume={whole[0]}", "rounds=9"]) == 2
    assert "leave out rounds" in capsys.readouterr().err
