"""Makes the pool known to threadpoolctl, so that joblib, scikit-learn and users can limit it.

threadpoolctl finds libraries among the loaded files, and only those that were registered. It is
small, and asks for nothing else; without it there is nothing to do.
"""

from __future__ import annotations

from typing import Any

__all__ = ["register"]


def register() -> bool:
    """Register a controller if threadpoolctl is installed; return whether it is."""
    try:
        import threadpoolctl
    except ImportError:
        return False
    base: Any = getattr(threadpoolctl, "LibController", None)  # new in 3.2
    if base is None:
        return False

    class FastrnnController(base):  # type: ignore[misc]
        """The pool of fastrnn: `user_api` and `internal_api` are "fastrnn"."""

        user_api = "fastrnn"
        internal_api = "fastrnn"
        filename_prefixes = ("runtime.",)  # the one module that is linked with the pool
        check_symbols = ("PyInit_runtime",)  # all that the module exports

        def get_num_threads(self) -> int:
            from fastrnn._kernels import runtime

            return int(runtime.get_num_threads())

        def set_num_threads(self, num_threads: int) -> None:
            from fastrnn._kernels import runtime

            runtime.set_num_threads(num_threads)

        def get_version(self) -> str | None:
            from importlib import metadata

            try:
                return metadata.version("fastrnn")
            except metadata.PackageNotFoundError:  # imported from a source tree
                return None

        def set_additional_attributes(self) -> None:
            from fastrnn._kernels import runtime

            self.instruction_set = runtime.get_isa()

    threadpoolctl.register(FastrnnController)
    return True
