"""What is compiled? One optional C library: without a compiler the package installs and scans in PyTorch."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("dsm_core/model/csrc")
GNU_FLAGS = ["-O3", "-g0", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-pthread"]


class BuildLibrary(build_ext):
    """Builds a plain shared library, called through ctypes: it has no Python module initialiser to export."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return list(ext.export_symbols)


setup(
    ext_modules=[
        Extension(
            "dsm_core.model._selective_scan",
            sources=[str(SOURCES / "selective_scan.c")],
            depends=sorted(map(str, SOURCES.glob("*.h"))),
            extra_compile_args=[] if sys.platform == "win32" else GNU_FLAGS,
            extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary},
)
