"""How is only the fleet path made public? The nginx configuration, for a system's nginx or for one of our own."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from server.consortium import Consortium
from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import make_private_folder, write_file
from strategies.deployment.flower import LOOPBACK
from strategies.deployment.processes import Program

PROXY = "proxy"
# Not on every user's PATH: Debian keeps it in sbin.
PLACES = ("/usr/sbin/nginx", "/usr/local/sbin/nginx", "/opt/homebrew/bin/nginx")


def proxy_configuration(consortium: Consortium) -> str:
    """An upstream and a server block, to be included in the http block of any nginx."""
    return _render("proxy.conf.j2", consortium=consortium, loopback=LOOPBACK)


def proxy_program(consortium: Consortium) -> Program:
    """nginx as a process of the coordinator, its configuration written to the consortium's folder.

    Raises:
        DeploymentError: nginx is not installed.
    """
    work = make_private_folder(consortium.folder / "nginx")
    write_file(work / "proxy.conf", proxy_configuration(consortium))
    write_file(work / "nginx.conf", _render("nginx.conf.j2", work=work))
    command = (find_nginx(), "-e", "stderr", "-p", f"{work}", "-c", f"{work / 'nginx.conf'}", "-g", "daemon off;")
    return Program(PROXY, command, {}, consortium.fleet_port, host="0.0.0.0")


def find_nginx() -> str:
    """Path of nginx.

    Raises:
        DeploymentError: it is not installed.
    """
    found = shutil.which("nginx") or next((place for place in PLACES if Path(place).exists()), None)
    if found is None:
        raise DeploymentError(
            "nginx is not installed, and without it sites on other machines cannot connect; install it (`apt-get "
            "install nginx`), run `dsm-server nginx` for a proxy of your own and start with --no-proxy"
        )
    return found


def _render(template: str, **values: object) -> str:
    text = resources.files("server").joinpath("deploy", template).read_text(encoding="utf-8")
    return Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text).render(**values)
