"""The committed modules are what consortium.proto says: whoever edits one must run `make proto`."""

from __future__ import annotations

from pathlib import Path

import pytest

from strategies.proto import consortium_pb2, consortium_pb2_grpc

ROOT = Path(__file__).parents[3]
SOURCE = Path("strategies/proto/consortium.proto")


def declarations(module):
    """What a generated module declares; its header and version check change with the compiler's release."""
    return [line for line in module.read_text().splitlines() if "AddSerializedFile" in line or "  def " in line]


def test_generated_modules_match_the_proto_file(tmp_path):
    protoc = pytest.importorskip("grpc_tools.protoc")
    assert protoc.main(["protoc", f"-I{ROOT}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"{SOURCE}"]) == 0
    for ending in (".py", ".pyi"):
        generated, committed = (folder / SOURCE.parent / f"consortium_pb2{ending}" for folder in (tmp_path, ROOT))
        assert declarations(generated) == declarations(committed)


def test_every_call_has_a_stub_and_a_servicer():
    service = consortium_pb2.DESCRIPTOR.services_by_name["Consortium"]
    calls = {method.name for method in service.methods}
    assert calls == {"About", "GetBank", "Encode", "Enrol", "Watch"}
    assert calls <= set(vars(consortium_pb2_grpc.ConsortiumServicer))
