"""What pyproject.toml cannot say: the engine in C, which is left out where it cannot be compiled, or is not asked for.

ZAMBA_COMPAT_PURE=1 builds a wheel for every platform, without it.
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = ("chunks", "kernels", "quantized", "quantized512", "rows", "scan", "tiles", "token")
HEADERS = ("avx2", "bfloat16", "chunk", "export", "lanes", "quantized", "rows", "scan", "team", "tiles")
ENGINE = Extension(
    "zamba_compat.cpu.native._kernels",
    [f"zamba_compat/cpu/native/{name}.c" for name in SOURCES],
    extra_compile_args=["-O3", "-ffp-contract=off", "-fvisibility=hidden"],
    libraries=["m"],
    depends=[f"zamba_compat/cpu/native/{name}.h" for name in HEADERS],
    optional=True,
)


class SharedLibrary(build_ext):
    """A plain shared library: it is loaded by its name, and knows nothing of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"


class AnyPython(bdist_wheel):
    """A wheel for every version of Python: of one platform with the engine, of any without."""

    def get_tag(self) -> tuple[str, str, str]:
        compiled = any(Path(self.bdist_dir).rglob("_kernels.so"))
        return "py3", "none", super().get_tag()[2] if compiled else "any"


setup(
    ext_modules=[] if os.environ.get("ZAMBA_COMPAT_PURE") == "1" else [ENGINE],
    cmdclass={"build_ext": SharedLibrary, "bdist_wheel": AnyPython},
)
