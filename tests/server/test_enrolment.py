"""Before round 1: sites are waited for, contracts compared, the text space delivered."""

import time
from types import SimpleNamespace

import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from dsm_core.classes import ClassKind
from dsm_core.data import ClassContract, LabelContract
from server.enrolment import ContractConflict, deliver_text, enrol, wait_for_sites
from server.exchange import FederationError
from simulations.grid import run_in_process
from strategies import messages

NORTH = LabelContract(
    "north", 4, {"liver": ClassContract(ClassKind.ORGAN, None, 4), "polyp": ClassContract(ClassKind.ORGAN, None, 1)}
)
SOUTH = LabelContract("south", 3, {"liver": ClassContract(ClassKind.ORGAN, None, 3)})
EAST = LabelContract(
    "east", 2, {"polyp": ClassContract(ClassKind.LESION, None, 2), "liver": ClassContract(ClassKind.LESION, None, 2)}
)


def enrolled(*answers, timeout_s=5.0, names=None, on_answer=lambda *_: None):
    app = ClientApp()

    @app.query("enrol")
    def answer(message: Message, context) -> Message:
        messages.unpack_enrol(message.content)
        given = answers[int(context.node_config["site-dir"])]
        if isinstance(given, float):
            time.sleep(given)
        elif isinstance(given, str):
            return messages.error_reply(messages.FAULT_CODE, given, message)
        content = given.to_dict() if isinstance(given, LabelContract) else {"site": "odd"}
        return Message(messages.pack_contract(content), reply_to=message)

    def serve(grid, context):
        nodes = wait_for_sites(grid, len(answers), 1.0)
        by_node = dict(zip(nodes, names, strict=True)) if names else None
        return enrol(grid, nodes, timeout_s, names=by_node, on_answer=on_answer)

    return run_in_process(serve, app, [f"{i}" for i in range(len(answers))], threads=4)


def test_contracts_by_site_name_sorted():
    enrolment = enrolled(SOUTH, NORTH)
    assert list(enrolment.contracts) == list(enrolment.nodes) == ["north", "south"]
    assert enrolment.contracts["north"] == NORTH
    assert enrolment.nodes["north"] != enrolment.nodes["south"]


def test_no_site_speaks_for_another():
    assert set(enrolled(NORTH, SOUTH, names=("north", "south")).nodes) == {"north", "south"}
    with pytest.raises(FederationError, match=r"is registered as site 'east' and calls itself 'south'"):
        enrolled(NORTH, SOUTH, names=("north", "east"))


def test_all_conflicts_at_once_with_both_sites():
    with pytest.raises(ContractConflict) as error:
        enrolled(NORTH, SOUTH, EAST)
    assert len(error.value.conflicts) == 2
    for conflict, name in zip(sorted(error.value.conflicts), ("liver", "polyp"), strict=True):
        assert name in conflict
        assert "north" in conflict
        assert "east" in conflict
        assert conflict in str(error.value)


def test_all_faults_at_once():
    with pytest.raises(FederationError) as error:
        enrolled(NORTH, NORTH, "3 faults in the site's data folder", {}, 1.0, timeout_s=0.5)
    text = str(error.value)
    assert "both call themselves site 'north'" in text
    assert "3 faults in the site's data folder" in text
    assert "not a label contract" in text
    assert "no answer within 0.5 s" in text


def test_registered_sites_are_called_by_their_names_not_by_numbers():
    answered = []
    with pytest.raises(FederationError) as error:
        enrolled(
            *(NORTH, "disk full", 1.0),
            timeout_s=0.5,
            names=("north", "south", "east"),
            on_answer=lambda *answer: answered.append(answer),
        )
    assert "south: disk full" in str(error.value)
    assert "east: no answer within 0.5 s, though it is connected" in str(error.value)
    assert "node " not in str(error.value)
    assert sorted(answered) == [("north", ""), ("south", "disk full")]


@pytest.mark.parametrize(("minimum", "reason"), [(3, "2 of 3 sites connected within 0.1 s"), (0, "at least 1 site")])
def test_too_few_sites(minimum, reason):
    grid = SimpleNamespace(get_node_ids=lambda: [5, 6])
    with pytest.raises(FederationError, match=reason):
        wait_for_sites(grid, minimum, 0.1)


def test_text_space_is_delivered_and_who_lacks_it_is_named():
    app, text = ClientApp(), SimpleNamespace(hash="a" * 64, to_bytes=lambda: b"vectors")

    @app.query("text")
    def receive(message: Message, context) -> Message:
        content, stated = messages.unpack_text(message.content)
        assert content == b"vectors"
        site = context.node_config["site-dir"]
        if site == "torn":
            return messages.error_reply(messages.FAULT_CODE, "corrupted", message)
        return Message(messages.pack_text_receipt("b" * 64 if site == "other" else stated), reply_to=message)

    sites = ["good", "other", "torn"]
    missing = run_in_process(
        lambda grid, _: deliver_text(grid, dict(zip(sites, grid.get_node_ids(), strict=True)), text, 5.0), app, sites
    )
    assert missing == {"other": "holds text space bbbbbbbbbbbb, wanted aaaaaaaaaaaa", "torn": "corrupted"}
