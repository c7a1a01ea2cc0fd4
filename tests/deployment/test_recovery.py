"""A deployed run in trouble: processes killed with -9, a cut wire, a full disk. It goes on, and says what was wrong.

One consortium of two sites. The site north reaches the coordinator over a wire that can be cut and whose bytes are
counted, and lives on a disk of its own that can be filled. Each test trains a run of its own.
"""

import json
import socket
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from client.ledger import LEDGER_NAME, Ledger
from dsm_core.config import PhantomConfig
from simulations.sites import generate_sites
from strategies.deployment.processes import Place, running_pid

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc"),
]

BOTH = ["north", "south"]
DEADLINE_S = 150.0  # of a round: one takes a tenth of it on an idle machine
GRACE_S = 30.0  # polling, averaging, a busy machine
KEYS = (
    "prior.rounds=0", "tumors.rounds=0", "train.local_steps=1", "train.batch=1", "data.spacing_mm=[8,8,8]",
    "data.patch=[32,32,32]",
    "model.widths=[8,8,16,16]", "model.mamba_blocks=[0,0,0,1]", "model.decoder_width=16", "model.query_width=16",
    "model.mask_width=8", "server.quorum=0.5", f"server.round_timeout_s={DEADLINE_S:g}",
)  # fmt: skip


class Wire:
    """A way to the coordinator: counts the bytes that go there; can be cut (refused) and muted (packets are lost)."""

    def __init__(self, port):
        self.sent, self._port, self._ends = 0, port, set()
        self._is_cut, self._passes = False, threading.Event()
        self._passes.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        self._is_cut = True
        for end in list(self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mute(self):
        self._passes.clear()

    def mend(self):
        self._is_cut = False
        self._passes.set()

    def _accept(self):
        while True:
            near, _ = self._listener.accept()
            if self._is_cut:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:  # the coordinator is down
                near.close()
                continue
            self._ends |= {near, far}
            for source, sink, counts in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass, args=(source, sink, counts), daemon=True).start()

    def _pass(self, source, sink, counts):
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._passes.wait()
                sink.sendall(data)
                self.sent += len(data) * counts
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            self._ends.discard(end)


@pytest.fixture(scope="module")
def consortium(typed_consortium, tmp_path_factory):
    """Two sites connected; north behind `wire`, on a small disk where this user may mount one (`has_disk`)."""
    made = typed_consortium("recovery", "--no-proxy")
    made.wire = Wire(made.port)
    sites = generate_sites(tmp_path_factory.mktemp("sites"), 2, PhantomConfig(cases=2, held_out=1), seed=0)
    made.data = dict(zip(BOTH, sites.folders.values(), strict=True))
    north = made.folder / "north"
    north.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", f"{north}"]
    made.has_disk = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    for name, data in made.data.items():
        made.join(name, data)
        made.accept(name)
    membership = north / "membership.json"
    membership.write_text(json.dumps(json.loads(membership.read_text()) | {"fleet": f"127.0.0.1:{made.wire.port}"}))
    made.done(made.server("start", "--services", "--detach"))
    for name in BOTH:
        made.done(made.site(name, "start", "--detach"))
    yield made
    made.wire.mend()
    for name in BOTH:
        made.done(made.site(name, "stop"))
    if made.has_disk:
        subprocess.run(["umount", "--lazy", f"{north}"], check=True)
        made.joined.remove("north")


def test_a_round_completes_without_a_site_that_is_killed_and_it_takes_part_again(consortium, train):
    run = train("site", *KEYS, "rounds=6")
    run.until_training(2)
    consortium.cut_power("north")
    report = json.loads(consortium.site("north", "doctor", "--json").stdout)
    (programs,) = [finding for finding in report["findings"] if finding["name"] == "programs"]
    assert "supernode does not run" in programs["found"]
    assert "dsm-site start" in programs["remedy"]
    record = run.record_of(2)
    assert record["sites"] == ["south"]
    assert "its connection was lost: no sign of life for 60 s" in record["failed"]["north"]
    assert record["seconds"] < DEADLINE_S + GRACE_S
    consortium.done(consortium.site("north", "start", "--detach"))
    run.record_with("north", after=2)
    assert run.completes(6)[-1]["sites"] == BOTH


def test_a_training_process_that_is_killed_costs_its_site_one_round(consortium, train):
    run = train("app", *KEYS, "rounds=3")
    consortium.kill(run.until_training(2))
    history = run.completes(3)
    assert "its training process ended without an answer" in history[1]["failed"]["north"]
    assert [record["sites"] for record in history] == [BOTH, ["south"], BOTH]


def test_a_run_completes_although_the_superlink_is_killed_in_mid_round(consortium, train):
    run = train("superlink", *KEYS, "rounds=2")
    run.until_training(2)
    place = Place(consortium.folder / "consortium")
    before = running_pid(place, "superlink")
    consortium.kill([before])
    history = run.completes(2)
    assert [record["sites"] for record in history] == [BOTH] * 2
    assert running_pid(place, "superlink") not in (None, before)


def test_a_run_whose_process_is_killed_says_so_and_is_gone_on_with(consortium, train):
    run = train("process", *KEYS, "rounds=2")
    run.until_training(2)
    consortium.kill(consortium.apps("consortium", "serverapp"))
    assert run.command.wait(run.patience_s) == 1
    assert "its process ended without a word" in run.said
    assert "dsm-server start --resume name=process" in run.said
    status = consortium.done(consortium.server("status"))
    assert "run process: federated: round 2 of 3, stopped" in status
    first = run.history()[0]
    resumed = train("process", "--resume")
    assert resumed.completes(2)[0] == first


def test_a_coordinator_that_loses_its_power_goes_on_with_the_run(consortium, train):
    run = train("power", *KEYS, "rounds=2")
    run.until_training(2)
    consortium.cut_power("consortium")
    run.command.wait(run.patience_s)
    status = json.loads(consortium.done(consortium.server("status", "--json")))
    assert set(status["processes"].values()) == {None}
    consortium.done(consortium.server("start", "--services", "--detach"))
    resumed = train("power", "--resume")
    assert [record["sites"] for record in resumed.completes(2)] == [BOTH] * 2


@pytest.mark.parametrize("trouble", ["cut", "mute"])
def test_a_round_does_not_wait_for_a_site_that_the_network_has_lost(consortium, train, trouble):
    run = train(trouble, *KEYS, "rounds=4")
    run.until_training(2)
    getattr(consortium.wire, trouble)()
    record = run.record_of(2)
    consortium.wire.mend()
    assert record["sites"] == ["south"]
    assert "its connection was lost" in record["failed"]["north"]
    assert record["seconds"] < DEADLINE_S + GRACE_S
    run.record_with("north", after=2)  # by itself: nobody starts it anew
    run.completes(4)


def test_a_site_whose_disk_is_full_says_so_and_goes_on_once_there_is_room(consortium, train):
    if not consortium.has_disk:
        pytest.skip("this user may mount no disk of its own, so none can be filled")
    filler = consortium.folder / "north" / "filler"
    run = train("disk", *KEYS, "rounds=5")
    run.until_training(2)
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    report = json.loads(consortium.site("north", "doctor", "--json").stdout)
    (disk,) = [finding for finding in report["findings"] if finding["name"] == "disk"]
    assert disk["state"] == "fault"
    assert "No space left on device" in disk["found"]
    record = run.record_of(2)
    filler.unlink()
    assert "No space left on device" in record["failed"]["north"]
    assert record["seconds"] < DEADLINE_S + GRACE_S
    run.record_with("north", after=2)
    run.completes(5)
    assert "intact" in consortium.done(consortium.site_alone("audit", "verify", "north/audit.jsonl"))


def test_over_budget_no_update_is_on_the_wire(consortium, train):
    """The same run twice: north within its budget, and above it. Polling goes on either way; the update does not."""
    sent = {}
    for name, ceiling in (("within", 8.0), ("above", 0.01)):
        for site, data in consortium.data.items():
            (data / LEDGER_NAME).unlink(missing_ok=True)
            Ledger(data / LEDGER_NAME, data.name).create(ceiling if site == "north" else 8.0, 1e-3)
        before = consortium.wire.sent
        run = train(name, *KEYS, "rounds=1", "privacy.mode=dp_sgd", "privacy.epsilon=8", "privacy.accountant=rdp")
        (record,) = run.completes(1)
        sent[name] = consortium.wire.sent - before
        charges = Ledger(consortium.data["north"] / LEDGER_NAME, consortium.data["north"].name).read().charges
        assert len(charges) == (name == "within")
    assert record["failed"] == {"north": "refused: budget"}
    print(f"bytes from north: {sent}")
    update = (run.folder / "checkpoints" / "last" / "model.safetensors").stat().st_size
    assert sent["within"] > update
    assert sent["above"] < update / 4
    for data in consortium.data.values():
        (data / LEDGER_NAME).unlink()
