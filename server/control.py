"""What does the coordinator ask of its SuperLink? Nodes registered, runs started and watched; Flower's Control API.

The only importer of Flower's control client. Its interface is not public, hence the tight bound on flwr's release.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from server.consortium import Consortium
from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import write_file
from strategies.deployment.flower import LOOPBACK, direct_loopback, is_port_taken

GONE, FINISHED = "unregistered", "finished"


class ControlFault(DeploymentError):
    """The SuperLink did not do what it was asked; the message says what it answered."""


@dataclass(frozen=True)
class Node:
    """A SuperNode as the SuperLink knows it.

    Attributes:
        site: the name that it was registered under.
        status: registered (never seen), online or offline.
        public_key: PEM.
    """

    id: int
    site: str
    status: str
    public_key: bytes


@dataclass(frozen=True)
class Control:
    """A connection to a running SuperLink."""

    client: ControlHttpClient

    def nodes(self) -> list[Node]:
        """Every node that may connect."""
        answer = self.client.ListNodes(ListNodesRequest())
        return [Node(n.node_id, n.name, n.status, n.public_key) for n in answer.nodes_info if n.status != GONE]

    def register(self, site: str, public_key: bytes) -> int:
        """Let a site's SuperNode in; returns its id."""
        return int(self.client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=site)).node_id)

    def unregister(self, node: int) -> None:
        """Let a SuperNode in no longer."""
        self.client.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def start_run(self, fab: Fab, run_config: dict[str, str]) -> int:
        """Submit an app; returns the run's id."""
        answer = self.client.StartRun(
            StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(run_config)))
        )
        if not answer.HasField("run_id"):
            raise ControlFault(f"the SuperLink started no run: {answer.note or 'it gave no reason'}")
        return int(answer.run_id)

    def run_status(self, run: int) -> tuple[str, str]:
        """Status of a run such as `running` or `finished:completed`, and its details."""
        status = self.client.ListRuns(ListRunsRequest(run_id=run)).run_dict[run].status
        return status.status + (f":{status.sub_status}" if status.sub_status else ""), status.details

    def unfinished_runs(self) -> list[int]:
        """Every run that has not ended."""
        runs = self.client.ListRuns(ListRunsRequest()).run_dict
        return [int(run) for run, found in runs.items() if found.status.status != FINISHED]

    def stop_run(self, run: int) -> None:
        """End a run."""
        self.client.StopRun(StopRunRequest(run_id=run))


@contextmanager
def open_control(consortium: Consortium) -> Iterator[Control]:
    """The SuperLink's Control API on the loopback address.

    Raises:
        ControlFault: it cannot be reached, or refuses what is asked of it.
    """
    address = f"{LOOPBACK}:{consortium.flower_port}"
    os.environ.update(direct_loopback())  # the client reads its proxies from there
    client = ControlHttpClient.from_server_address(
        address,
        insecure=False,
        root_certificates=consortium.ca_certificate.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="dsm-server")],
    )
    try:
        yield Control(client)
    except httpx.HTTPStatusError as error:
        said = FlowerError.from_json(error.response.text)
        reason = said.message if said else f"HTTP status {error.response.status_code}"
        raise ControlFault(f"the SuperLink refuses: {reason}") from error
    except httpx.HTTPError as error:
        raise ControlFault(f"the SuperLink does not answer at {address}: {error}") from error
    finally:
        client.close()


def settle_members(consortium: Consortium, control: Control) -> None:
    """Make the SuperLink let in exactly the accepted sites, and write down the node of each."""
    wanted = {consortium.site_file(name, ".pub").read_bytes(): name for name in consortium.members()}
    found: dict[str, int] = {}
    for node in control.nodes():
        if node.public_key in wanted:
            found[wanted[node.public_key]] = node.id
        else:
            control.unregister(node.id)
    for key, name in wanted.items():
        if name not in found:
            found[name] = control.register(name, key)
    write_file(consortium.node_names, json.dumps({f"{node}": name for name, node in found.items()}, indent=1) + "\n")


def settle_if_running(consortium: Consortium) -> bool:
    """Tell a running SuperLink who belongs to the consortium now; False where none runs."""
    if not is_port_taken(consortium.flower_port):
        return False
    with open_control(consortium) as control:
        settle_members(consortium, control)
    return True


def connected(consortium: Consortium) -> dict[str, bool]:
    """Which accepted sites are connected now; empty where no SuperLink runs."""
    if not is_port_taken(consortium.flower_port):
        return {}
    with open_control(consortium) as control:
        online = {node.public_key for node in control.nodes() if node.status == "online"}
    return {name: consortium.site_file(name, ".pub").read_bytes() in online for name in consortium.members()}
