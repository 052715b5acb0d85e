"""What pyproject.toml cannot say: the loops in C, which are left out where they cannot be compiled."""

from __future__ import annotations

import os

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = ("attention", "chunks", "kernels", "quantized", "quantized512", "rows", "scan", "tiles", "token")
HEADERS = ("avx2", "bfloat16", "chunk", "export", "lanes", "quantized", "rows", "scan", "team", "tiles")


class SharedLibrary(build_ext):
    """A plain shared library: it is loaded by its name, and knows nothing of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"


class AnyPython(bdist_wheel):
    """A wheel of one platform, for every version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "zamba_compat.cpu.native._kernels",
            [f"zamba_compat/cpu/native/{name}.c" for name in SOURCES],
            extra_compile_args=["-O3", "-ffp-contract=off", "-fvisibility=hidden"],
            libraries=["m"],
            depends=[f"zamba_compat/cpu/native/{name}.h" for name in HEADERS],
            optional=True,
        )
    ],
    cmdclass={"build_ext": SharedLibrary, "bdist_wheel": AnyPython},
)
