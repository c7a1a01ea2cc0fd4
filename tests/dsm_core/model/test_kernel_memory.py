"""Do the C kernels stay inside their buffers? Address, undefined-behaviour and thread sanitizers over odd shapes."""

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_kernels_are_clean_under_sanitizers(tmp_path, sanitizer):
    source, program = Path(__file__).with_name("sanitize_kernels.c"), tmp_path / "kernels"
    flags = ["-O1", "-g", "-std=gnu11", "-pthread", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(program)], check=True)
    outcome = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr[-4000:]
    assert "status 0" in outcome.stdout
