"""`dsm-server text-space build` and `show`: banks that runs take, what they warn of, and everything that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsm_core.classes import ATLAS, ClassKind, describe_class
from dsm_core.config import TextConfig
from dsm_core.data import ClassContract, LabelContract
from dsm_core.text_bank import read_bank
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpaceError
from server import cli

REAL_BANK = Path(__file__).parents[3] / "shared" / "data" / "text_space" / "clip_vit_b32_dsm45.safetensors"


@pytest.fixture
def text_space(capsys):
    """Runs `dsm-server text-space`; returns its exit code and what it said."""

    def run(*words):
        code = cli.main(["text-space", *map(str, words)])
        told = capsys.readouterr()
        return code, told.out + told.err

    return run


def site(root, name, labels, classes=None):
    (root / name).mkdir(parents=True)
    for part in ("imagesTr", "labelsTr"):
        (root / name / part).mkdir()
        (root / name / part / "case.nii.gz").write_bytes(b"")
    content = {
        "labels": {"background": 0} | {label: value for value, label in enumerate(labels, start=1)},
        "modality": {"0": "CT"},
        "training": [{"image": "imagesTr/case.nii.gz", "label": "labelsTr/case.nii.gz"}],
        "classes": classes or {},
    }
    (root / name / "dataset.json").write_text(json.dumps(content))


def test_bank_that_was_built_gives_a_run_the_very_vectors_of_its_encoder(text_space, tmp_path):
    file = tmp_path / "bank.safetensors"
    code, said = text_space("build", file, "--class", "liver", "--class", "left thyroid lobe")
    assert code == 0, said
    assert f"use it: text.bank={file}" in said
    assert "hashed words (deterministic, not CLIP)" in said
    classes = [describe_class(name) for name in ("liver", "left thyroid lobe")]
    from_bank, direct = (build_text_space(classes, config) for config in (TextConfig(bank=str(file)), TextConfig()))
    assert from_bank.hash == direct.hash
    assert torch.equal(from_bank.encode(["gallstone"]), direct.encode(["gallstone"]))
    assert len(read_bank(file).classes) == len(ATLAS) + 1


def test_dry_run_writes_nothing_and_a_bank_is_not_overwritten_unasked(text_space, tmp_path):
    file = tmp_path / "bank.safetensors"
    code, said = text_space("build", file, "--dry-run")
    assert (code, list(tmp_path.iterdir())) == (0, [])
    assert f"dry run: would write {file}" in said
    file.write_bytes(b"mine")
    code, said = text_space("build", file)
    assert (code, file.read_bytes()) == (1, b"mine")
    assert "--replace" in said
    assert text_space("build", file, "--replace")[0] == 0
    assert read_bank(file).model.startswith("hashed words")
    assert list(tmp_path.iterdir()) == [file]


def test_full_disk_leaves_the_bank_that_was_there(text_space, tmp_path, monkeypatch):
    file = tmp_path / "bank.safetensors"
    text_space("build", file, "--class", "liver")
    before = file.read_bytes()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dsm_core.durable.os.replace", full)
    code, said = text_space("build", file, "--class", "spleen", "--replace")
    assert code == 1
    assert "No space left on device" in said
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_classes_come_from_lists_contracts_and_data_folders_with_their_hosts(text_space, tmp_path):
    (tmp_path / "plain.txt").write_text("# ours\nliver\n\nSpleen_Tumour\n")
    (tmp_path / "rich.json").write_text(
        json.dumps(
            {"omentum": {"kind": "organ"}, "omental cake": {"kind": "lesion", "host": "omentum", "synonyms": ["x"]}}
        )
    )
    contract = LabelContract("north", 2, {"aorta": ClassContract(ClassKind.ORGAN, None, 2)})
    (tmp_path / "contracts.json").write_text(json.dumps([contract.to_dict()]))
    site(tmp_path / "sites", "a", ["pancreas", "goitre"], {"goitre": {"kind": "lesion", "host": "larynx"}})
    file = tmp_path / "bank.safetensors"
    sources = ["--classes", tmp_path / "plain.txt", "--classes", tmp_path / "rich.json"]
    code, said = text_space(
        "build", file, *sources, "--contracts", tmp_path / "contracts.json", "--data", tmp_path / "sites"
    )
    assert code == 0, said
    assert "7 asked for" in said
    held = {info.name: info for info in read_bank(file).classes}
    assert held["omental cake"].host == "omentum"
    assert held["omental cake"].synonyms == ("x",)
    assert held["goitre"].host == "larynx"
    assert {"liver", "spleen tumor", "aorta", "pancreas"} <= set(held)
    space = build_text_space([describe_class("omental cake", "lesion")], TextConfig(bank=str(file)))
    assert space.classes[0].host == "omentum"
    assert space.find("x") == space.classes[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}/bank.pt"], "ends in .safetensors"),
        (["{}/absent/bank.safetensors"], "create it first"),
        (["{}/b.safetensors", "rounds=3"], "wanted text.KEY=VALUE, found rounds=3"),
        (["{}/b.safetensors", "text.weightz=x"], "weightz"),
        (["{}/b.safetensors", "text.bank=x"], "text.bank is a bank already"),
        (["{}/b.safetensors", "text.weights={}/absent.safetensors"], "no such file"),
        (["{}/b.safetensors", "--classes", "{}/absent.txt"], "no list of classes"),
        (["{}/b.safetensors", "--classes", "{}/empty.txt"], "no class"),
        (["{}/b.safetensors", "--classes", "{}/twice.txt"], "'liver' twice"),
        (["{}/b.safetensors", "--classes", "{}/odd.json"], "'liver' has colour"),
        (["{}/b.safetensors", "--contracts", "{}/empty.txt"], "no label contracts"),
        (["{}/b.safetensors", "--data", "{}/none"], "none"),
        (
            ["{}/b.safetensors", "--classes", "{}/lesion.json", "--class", "liver"],
            "'liver' is organ in --class liver and lesion",
        ),
    ],
)
def test_what_cannot_be_built_says_why_and_writes_nothing(text_space, tmp_path, words, said):
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "twice.txt").write_text("liver\nLiver\n")
    (tmp_path / "odd.json").write_text('{"liver": {"colour": "red"}}')
    (tmp_path / "lesion.json").write_text('{"liver": {"kind": "lesion"}}')
    (tmp_path / "none").mkdir()
    before = sorted(tmp_path.iterdir())
    code, told = text_space("build", *[word.replace("{}", str(tmp_path)) for word in words])
    assert code == 1
    assert said in told
    assert sorted(tmp_path.iterdir()) == before


def test_sites_that_contradict_are_both_named(text_space, tmp_path):
    site(tmp_path / "sites", "a", ["liver"])
    site(tmp_path / "sites", "b", ["liver"], {"liver": {"kind": "lesion"}})
    code, said = text_space("build", tmp_path / "bank.safetensors", "--data", tmp_path / "sites")
    assert code == 1
    assert "lesion at b, organ at a" in said


@pytest.fixture
def by_hand(tmp_path):
    """Three organs and a tumour; the two kidneys are nearly one direction."""
    rows = {
        "right kidney": [1.0, 0.05, 0, 0], "left kidney": [1.0, -0.05, 0, 0], "liver": [0, 0, 1.0, 0],
        "liver tumor": [0, 0, 0.7, 0.7], "kidney tumor": [0.0, 0, 0.8, 0.3],
    }  # fmt: skip
    path = tmp_path / "hand.safetensors"
    metadata = {"classes": json.dumps(list(rows)), "model": "by hand"}
    save_file({"embeddings": torch.tensor(list(rows.values()))}, path, metadata=metadata)
    return path


def test_show_names_neighbours_hosts_and_what_cannot_be_told_apart(text_space, by_hand):
    code, said = text_space("show", by_hand)
    assert code == 0
    assert "'left kidney' and 'right kidney' are too close to be told apart by text (cosine 0.99, above 0.85)" in said
    assert "the text of 'kidney tumor' is near liver, its declared host is kidney" in said
    found = json.loads(text_space("show", by_hand, "--json", "--neighbours", "1")[1])
    assert list(found["classes"]["left kidney"]["nearest"]) == ["right kidney"]
    assert found["hosts"]["liver tumor"]["by_text"] == "liver"
    assert found["too_close"][0]["classes"] == ["left kidney", "right kidney"]
    assert found["width"] == 4
    high = json.loads(text_space("show", by_hand, "--json", "--threshold", "0.999")[1])
    assert high["too_close"] == []


def test_show_reads_the_text_space_of_a_checkpoint_or_a_site(text_space, tmp_path):
    space = build_text_space([ATLAS["liver"], ATLAS["liver tumor"]], TextConfig())
    space.save(tmp_path / "text_space.safetensors")
    found = json.loads(text_space("show", tmp_path / "text_space.safetensors", "--json")[1])
    assert found["hash"] == space.hash
    assert found["hosts"] == {
        "liver tumor": {"declared": "liver", "by_text": "liver", "weight": pytest.approx(1, abs=0.02)}
    }


def test_show_of_what_is_no_bank_says_so(text_space, tmp_path, by_hand):
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("absent.safetensors", "text.safetensors"):
        code, said = text_space("show", tmp_path / name)
        assert code == 1
        assert "wants a safetensors file" in said
    assert "--neighbours wants 1 or more" in text_space("show", by_hand, "--neighbours", "0")[1]


def test_bank_that_was_changed_is_refused(text_space, tmp_path):
    file = tmp_path / "bank.safetensors"
    text_space("build", file)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(TextSpaceError, match="is damaged"):
        read_bank(file)
    assert "is damaged" in text_space("show", file)[1]
    assert load_file(file)["embeddings"].shape[1] == 512


def test_real_clip_bank_warns_of_the_four_pairs_of_sides_and_of_nothing_else(text_space):
    if not REAL_BANK.is_file():
        pytest.skip("shared/data/text_space is not here")
    found = json.loads(text_space("show", REAL_BANK, "--json")[1])
    pairs = {
        tuple(name.removeprefix("left ").removeprefix("right ") for name in pair["classes"])
        for pair in found["too_close"]
    }
    assert pairs == {(organ, organ) for organ in ("head of femur", "adrenal gland", "lung", "kidney")}
    assert abs(found["mean_cosine"]) < 0.03
    by_text = {lesion: host["by_text"] for lesion, host in found["hosts"].items()}
    assert by_text["spleen tumor"] == "spleen"
    assert by_text["hepatic vessel tumor"] == "hepatic vessel"
