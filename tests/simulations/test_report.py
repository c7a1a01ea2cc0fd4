"""The report: complete where the run folder is, honest where it is not."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsm_core.config import Config
from dsm_core.stages import STAGES
from simulations.overlays import Overlay, save_overlays
from simulations.reading import read_run
from simulations.report import main, render, write_report
from simulations.results import RunFolder

SITES = {
    "north": {"liver": 12, "spleen": 12, "liver tumor": 9},
    "south": {"pancreas": 12, "stomach": 12, "aorta": 12},
    "east": {"left kidney": 12, "right kidney": 12, "kidney tumor": 8},
    "west": {"liver": 12, "aorta": 12, "gallbladder": 7},
}
UNSEEN = "pancreas tumor"
TOGETHER = {"liver": 0.95, "spleen": 0.91, "pancreas": 0.71, "stomach": 0.86, "aorta": 0.9, "left kidney": 0.92,
            "right kidney": 0.93, "gallbladder": 0.66, "liver tumor": 0.62, "kidney tumor": 0.57,
            UNSEEN: 0.12}  # fmt: skip


def status_of(site: str, name: str) -> str:
    if name in SITES[site]:
        return "local"
    return "foreign" if any(name in labels for labels in SITES.values()) else "unseen"


def matrix_rows(methods: tuple[str, ...] = ("federated", "local", "pooled", "fedavg")) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    rows = []
    for method in methods:
        for site in SITES:
            for name, best in TOGETHER.items():
                status = status_of(site, name)
                loss = {"federated": 0.04, "pooled": 0.0, "fedavg": 0.09, "local": 0.03}[method] * (status != "local")
                dice = (
                    0.0
                    if method == "local" and status != "local"
                    else max(0.0, best - loss - 0.05 * generator.random())
                )
                absent = (site, name) == ("south", "kidney tumor")
                rows.append(
                    {"method": method, "site": site, "class": name, "status": status,
                     "dice": None if absent else dice, "nsd": None if absent else min(1.0, dice * 1.05),
                     "cases": 4, "false_positive_ml": 1.5 if absent else None}
                )  # fmt: skip
    return rows


def sphere(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float) -> np.ndarray:
    axes = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return np.asarray(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= radius**2)


def overlay(site: str, name: str, status: str, method: str = "federated") -> Overlay:
    generator = np.random.default_rng(len(name))
    shape = (80, 64, 48)
    body = sphere(shape, (40, 32, 24), 30)
    radius = 4.0 if "tumor" in name else 11.0
    truth = sphere(shape, (52, 36, 24), radius)
    image = np.clip(0.45 * body + 0.12 * truth + 0.03 * generator.standard_normal(shape), 0, 1)
    prediction = np.zeros(shape, bool) if status == "unseen" else sphere(shape, (53, 35, 24), radius * 0.95)
    anomaly = 5.0 * truth if "tumor" in name else None
    dice = 0.0 if status == "unseen" else 0.88
    return Overlay(image, truth, prediction, method, site, name, status, dice, (4, 4, 4), anomaly)


def make_run(out: Path, rounds: int = 100, rows: list[dict[str, Any]] | None = None, **info: Any) -> RunFolder:
    folder = RunFolder.create(out, "demo", Config(), ["dsm-simulate", "compare=all", "rounds=100"])
    generator = np.random.default_rng(1)
    for method in ("federated", "fedavg", "local", "pooled"):
        for r in range(1, rounds + 1):
            decay = 0.35 + 1.3 * np.exp(-r / 30) + (0.1 if method == "fedavg" else 0)
            losses = {site: decay * (1 + 0.08 * i) + 0.05 * generator.random() for i, site in enumerate(SITES)}
            record: dict[str, Any] = {"round": r, "rounds": rounds, "loss": float(np.mean(list(losses.values())))}
            stage = STAGES[3 * (r - 1) // rounds]
            record |= {"stage": stage, "stage_round": r - -(-STAGES.index(stage) * rounds // 3)}
            record |= {"site_losses": {} if method == "pooled" else losses, "seconds": 1.0, "refused": []}
            if method == "federated":
                record |= {"server_step": 1 + 2 * r / rounds, "val_dice": 0.8 * (1 - np.exp(-r / 25))}
                record["refused"] = [{"site": "west", "reason": "holds NaN in class_rows.residual"}] * (r in (7, 8, 21))
            folder.log_round(method, record)
    folder.close()
    folder.write_matrix(matrix_rows() if rows is None else rows)
    defaults: dict[str, Any] = {
        "text_encoder": "hashed words (deterministic, not CLIP)", "text_hash": "ab" * 32, "scan_backend": "native",
        "sites": {site: {"classes": labels, "cases": 12} for site, labels in SITES.items()},
        "methods": {m: {"steps_total": 2000, "rounds": rounds} for m in ("federated", "fedavg", "local", "pooled")},
        "seconds": {"generate": 21.4, "federated": 301.0, "local": 287.5, "evaluate": 62.0},
        "generated": True, "finished": True,
    }  # fmt: skip
    folder.write_run_info(**(defaults | info))
    return folder


class Page(HTMLParser):
    """Every attribute and tag of a page; fails on tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in ("meta", "input", "img", "br", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = make_run(tmp_path_factory.mktemp("runs"))
    save_overlays(
        folder.overlays_dir,
        [overlay("north", "liver", "local"), overlay("south", "liver", "foreign"),
         overlay("east", "liver tumor", "foreign"), overlay("north", UNSEEN, "unseen")],
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def full_page(full_run: RunFolder) -> str:
    return write_report(full_run.path).read_text(encoding="utf-8")


def test_page_is_well_formed_and_needs_no_network(full_page: str) -> None:
    for tag, key, value in Page(full_page).attributes:
        if key in ("src", "href"):
            assert value.startswith(("#", "data:")), f"{tag} {key}={value[:60]}"
    assert "<script" not in full_page
    assert "@import" not in full_page
    assert "url(" not in full_page
    assert len(full_page.encode()) < 3_000_000


def test_every_cell_of_the_matrix_is_on_the_page_with_its_status(full_run: RunFolder, full_page: str) -> None:
    for row in json.loads(full_run.matrix_path.read_text()):
        score = "–" if row["dice"] is None else f"{row['dice']:.2f}"
        assert f"{row['site']}, {row['class']} ({row['status']}): Dice {score}" in full_page
    for letter in "LFU":
        assert re.search(rf"\d<i>{letter}</i></td>", full_page)
    assert "1.5 ml found where there is none" in full_page


def test_headline_states_the_foreign_dice_and_what_a_site_reaches_alone(full_page: str) -> None:
    rows = [
        r for r in matrix_rows() if r["method"] == "federated" and r["status"] == "foreign" and r["dice"] is not None
    ]
    mean = sum(r["dice"] for r in rows) / len(rows)
    lead = re.search(r'<p class="lead">(.*?)</p>', full_page, re.S)
    assert lead
    assert f"<b>{mean:.2f}</b>" in lead[1]
    assert "trains alone reaches 0.00" in lead[1]


def test_settings_refusals_and_caveats_are_shown(full_page: str) -> None:
    assert "Generated phantoms show mechanics, never clinical Dice" in full_page
    assert "The text space is not CLIP" in full_page
    assert "hashed words (deterministic, not CLIP)" in full_page
    assert "holds NaN in class_rows.residual" in full_page
    assert "7–8, 21" in full_page
    assert "NSD at 4 mm" in full_page
    assert "dsm-simulate compare=all rounds=100" in full_page
    assert "has not finished" not in full_page
    assert full_page.count("<polyline") >= 14


def test_real_clip_and_real_scans_carry_no_such_caveat(tmp_path: Path) -> None:
    folder = make_run(tmp_path, rounds=2, text_encoder="open_clip ViT-B-32 openai", generated=False, finished=False)
    page = render(read_run(folder.path))
    assert "not CLIP" not in page
    assert "Generated phantoms" not in page
    assert "has not finished" in page


def test_missing_pieces_are_named_and_the_rest_stays(tmp_path: Path) -> None:
    rows = [{**row, "nsd": None} for row in matrix_rows(("federated",))]
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "matrix.json").write_text(json.dumps(rows))
    page = render(read_run(tmp_path))
    Page(page)
    assert "This run wrote no pictures" in page
    assert "no history to draw" in page
    assert "local-only training was not run" in page
    assert "trains alone reaches" not in page
    assert "NSD at" not in page
    assert "Not known" in page


@pytest.mark.parametrize("method", ["local", "pooled"])
def test_a_baseline_alone_still_makes_a_page(tmp_path: Path, method: str) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "matrix.json").write_text(json.dumps(matrix_rows((method,))))
    Page(render(read_run(tmp_path)))


def test_names_from_a_site_are_escaped(tmp_path: Path) -> None:
    row = {**matrix_rows(("federated",))[0], "site": "<script>alert(1)</script>"}
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "matrix.json").write_text(json.dumps([row]))
    assert "<script" not in render(read_run(tmp_path))


def test_command_line_prints_the_report_or_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(make_run(tmp_path, rounds=2).path)]) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert main([]) == 2


def test_every_stage_has_curves_of_its_own_and_lesions_their_anomaly_map(full_run: RunFolder, full_page: str) -> None:
    headings = re.findall(r"<h3>Training loss, stage (\w+)", full_page)
    assert headings == list(STAGES)
    assert "Losses compare within a stage only" in full_page
    wide = full_page.split('class="pictures wide"')[1:]
    assert len(wide) == 2  # foreign and unseen lesions; the liver stands among the narrow pictures
    assert all("tumor" in part.split("</figure>")[0] for part in wide)
    assert full_page.count("departure from health, Dice") == 2


def test_history_without_stages_is_drawn_as_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    lines = [json.loads(line) for line in folder.history_path.read_text().splitlines()]
    old = [{k: v for k, v in line.items() if k not in ("stage", "stage_round")} for line in lines]
    folder.history_path.write_text("".join(json.dumps(line) + "\n" for line in old))
    page = render(read_run(folder.path))
    assert "<h3>Training loss</h3>" in page
    assert "Losses compare" not in page


def test_a_private_run_shows_what_each_site_has_spent_and_others_show_no_such_section(tmp_path: Path) -> None:
    spending = {"epsilon": 2.5, "ceiling": 3.0, "delta": 0.001, "steps": 40, "ledger": "of this run"}
    lost = {"fault": "its ledger cannot be read", "ledger": "of this run"}
    asked = {"epsilon": 3.0, "clip_norm": 0.1, "trained": "queries"}
    about = {"asked": asked, "federated": {"north": spending, "south": lost}, "fedavg": {"north": spending}}
    html = render(read_run(make_run(tmp_path / "private", privacy=about).path))
    section = html[html.index('<section id="privacy">') : html.index('<section id="refusals">')]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", section) == [
        "Federated", "north", "2.500", "3", "0.001", "40", "of this run",
        "Federated", "south", "its ledger cannot be read", "of this run",
        "Plain FedAvg", "north", "2.500", "3", "0.001", "40", "of this run",
    ]  # fmt: skip
    assert "<b>Not private:</b> local-only, pooled." in section
    assert 'id="privacy"' not in render(read_run(make_run(tmp_path / "open").path))
