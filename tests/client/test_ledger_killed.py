"""Kill -9 at a hundred points between charging and sending: the ledger never knows of less than what was sent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from client.ledger import Ledger

KILLS = 100
# Small processes without torch, forked from one: each charges and sends until a signal reaches it before a line of the
# ledger's code, the line's number drawn at random. What was sent is counted by its bytes.
SITE = """
import os, random, signal, sys
from client import ledger

folder, kills = sys.argv[1], int(sys.argv[2])
watched = {"charge", "_append", "_write", "_locked", "send"}  # not the reading, which is most of the code

class Unlimited:
    def is_within(self, charges, delta, epsilon):
        return True

def site(lines):
    left = lines

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_name not in watched:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def send():
        os.write(sent, b"u")
        return None

    sys.settrace(trace)
    while True:
        ledger.Ledger(path, "mercy", Unlimited()).charge(ledger.Charge(0.1, 1.0, 1))
        send()

random.seed(0)
for number in range(kills):
    if number % 5 == 0:
        path, sent = f"{folder}/{number}.jsonl", os.open(f"{folder}/{number}.sent", os.O_CREAT | os.O_WRONLY)
        ledger.Ledger(path, "mercy").create(8.0, 1e-4)
    lines = random.randint(1, 100)  # about three charges
    child = os.fork()
    if not child:
        site(lines)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
assert "torch" not in sys.modules
"""


def test_recorded_spending_is_never_below_what_was_sent(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SITE, str(tmp_path), str(KILLS)]
    subprocess.run(command, check=True, cwd=root, env={"PYTHONPATH": str(root)}, timeout=600)
    unsent = updates = 0
    for ledger in tmp_path.glob("*.jsonl"):
        charged, sent = len(Ledger(ledger, "mercy").read().charges), ledger.with_suffix(".sent").stat().st_size
        assert charged >= sent
        unsent, updates = unsent + charged - sent, updates + sent
    # The promise was put to the test: many updates were sent, and some kills came between the charge and the sending.
    assert updates >= KILLS / 2
    assert unsent >= KILLS / 10
