"""Folders of runs as dsm-simulate leaves them, without training any."""

from __future__ import annotations

import json

import pytest

from simulations.privacy_audit.results import ANY, MODEL, Finding, PrivacyAudit, write_audit
from simulations.sweep.runs import Folder


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "sweep")


@pytest.fixture
def finish(folder):
    """A function that leaves a finished run: its Dice by (site, class, status), and how many seconds it took."""

    def leave(name, dice, seconds=60.0):
        run = folder.run(name)
        run.mkdir(parents=True)
        rows = [
            {"method": "federated", "site": site, "class": of, "status": status, "dice": value, "nsd": None, "cases": 2}
            for (site, of, status), value in dice.items()
        ]
        info = {"finished": True, "seconds": {"federated": seconds}, "generated": True, "text_encoder": "hashed words"}
        (run / "run.json").write_text(json.dumps(info))
        (run / "matrix.json").write_text(json.dumps(rows))
        (run / "report.html").write_text("one run")

    return leave


@pytest.fixture
def attack(folder):
    """A function that leaves an audit in the sweep's folder, of (claimed epsilon, lower bound)."""

    def leave(*bounds):
        folder.path.mkdir(exist_ok=True)
        rows = [Finding(claim, MODEL, ANY, low, 0.95, 1e-5, 64, 9, 9, 0.5, 20, 0.1, None) for claim, low in bounds]
        write_audit(folder.path, PrivacyAudit(tuple(rows), (), (), {}))

    return leave
