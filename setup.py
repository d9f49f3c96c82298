"""The one part of the build that `pyproject.toml` cannot say: the extension is optional.

Without a compiler the install succeeds all the same, and ranks of one machine talk over unix sockets;
``rmpi-run --info`` says so.
"""

from setuptools import Extension, setup

PARTS = ("_ring", "lane", "flight", "values", "waiting", "adopting", "sending", "receiving", "hub", "port")
HEADERS = ("ring", "lane", "flight", "port")

setup(
    ext_modules=[
        Extension(
            "rmpi.transport._ring",
            [f"rmpi/transport/{part}.c" for part in PARTS],
            depends=[f"rmpi/transport/{header}.h" for header in HEADERS],
            extra_compile_args=["-std=c11", "-O3", "-Wall", "-fvisibility=hidden"],
            define_macros=[("_GNU_SOURCE", None)],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
