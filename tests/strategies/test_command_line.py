"""A command's faults become a code and one message; what is no fault of the reader is not taken for it."""

import argparse

import pytest

from strategies.deployment.command_line import Commands, run_command
from strategies.deployment.errors import DeploymentError


class Failing:
    """A group with one command that raises."""

    def __init__(self, fault: BaseException) -> None:
        self.fault = fault

    def add_commands(self, commands: Commands) -> None:
        commands.add_parser("try").set_defaults(run=self.run)

    def run(self, options: argparse.Namespace) -> int:
        raise self.fault


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [(DeploymentError("no port"), 1, "dsm-x try: no port\n"), (KeyboardInterrupt(), 130, "dsm-x try: interrupted\n")],
)
def test_fault_has_a_code_and_a_line(
    fault: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("dsm-x", "", [Failing(fault)], ["try"]) == code
    assert capsys.readouterr().err == said


def test_broken_pipe_that_is_not_the_readers_is_not_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BrokenPipeError, match="another's"):
        run_command("dsm-x", "", [Failing(BrokenPipeError("another's"))], ["try"])
