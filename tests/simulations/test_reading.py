"""Reading a run folder: every fault at once, and nothing half-read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulations.reading import ReportError, read_run

ROW = {"method": "federated", "site": "a", "class": "liver", "status": "local", "dice": 0.9, "nsd": None, "cases": 4}
PICTURE = {"file": "x.png", "method": "federated", "site": "a", "class": "liver", "status": "local", "dice": 0.9}


def write_run(folder: Path, rows: list[dict[str, Any]], info: dict[str, Any] | None = None, history: str = "") -> Path:
    (folder / "run.json").write_text(json.dumps(info or {}))
    (folder / "matrix.json").write_text(json.dumps(rows))
    if history:
        (folder / "history.jsonl").write_text(history)
    return folder


def test_two_files_are_enough(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, [ROW]))
    assert run.cells[0].dice == 0.9
    assert run.cells[0].nsd is None
    assert run.history == ()
    assert run.overlays == ()
    assert run.config_text == ""


def test_error_names_everything_that_is_missing_or_broken(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    (tmp_path / "history.jsonl").write_text("oops\n{}\n")
    with pytest.raises(ReportError) as caught:
        read_run(tmp_path)
    assert all(
        part in str(caught.value) for part in ("run.json: cannot", "matrix.json: missing", "history.jsonl: line 1")
    )


@pytest.mark.parametrize(("change", "said"), [({"status": "alien"}, "'alien'"), ({"dice": "good"}, "'good'")])
def test_every_broken_matrix_row_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ReportError) as caught:
        read_run(write_run(tmp_path, [ROW, {**ROW, **change}, {}]))
    second, third = str(caught.value).splitlines()[1:]
    assert "row 2" in second
    assert said in second
    assert "row 3 lacks 'method'" in third


def test_an_empty_matrix_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="holds no cell"):
        read_run(write_run(tmp_path, []))


def test_not_a_number_reads_as_no_score(tmp_path: Path) -> None:
    assert read_run(write_run(tmp_path, [{**ROW, "dice": float("nan")}])).cells[0].dice is None


def test_kind_comes_from_run_json_before_the_name(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "class": "liver tumor"}, {**ROW, "class": "target"}]
    run = read_run(write_run(tmp_path, rows, {"classes": {"target": {"kind": "organ"}}}))
    assert run.kinds == {"liver": "organ", "liver tumor": "lesion", "target": "organ"}


def test_a_resumed_round_counts_once_and_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    rounds = [{"method": "federated", "round": r, "loss": loss} for r, loss in ((1, 3.0), (2, 2.0), (2, 9.0))]
    text = "".join(json.dumps(record) + "\n" for record in rounds) + '{"method": "fed'
    assert [r["loss"] for r in read_run(write_run(tmp_path, [ROW], history=text)).history] == [3.0, 9.0]


def test_sites_that_train_alone_keep_their_own_lines(tmp_path: Path) -> None:
    records = [{"method": "local", "round": 1, "loss": 1.0, "site_losses": {site: 1.0}} for site in "ab"]
    history = "".join(json.dumps(record) + "\n" for record in records)
    assert len(read_run(write_run(tmp_path, [ROW], history=history)).history) == 2


def test_pictures_travel_inside_the_page_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path, [ROW])
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "overlays.json").write_text(json.dumps([PICTURE]))
    with pytest.raises(ReportError, match=r"overlays/x.png: missing"):
        read_run(tmp_path)
    (tmp_path / "overlays" / "x.png").write_bytes(b"abc")
    assert read_run(tmp_path).overlays[0]["uri"] == "data:image/png;base64,YWJj"


def test_a_picture_named_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    write_run(tmp_path, [ROW])
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "overlays.json").write_text(json.dumps([{**PICTURE, "file": "../run.json"}]))
    with pytest.raises(ReportError, match=r"overlays/run.json: missing"):
        read_run(tmp_path)
