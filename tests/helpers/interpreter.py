"""vLLM's model runner V2 on a CPU: its Triton kernels run in Triton's interpreter.

Call `install` before anything imports Triton or vLLM. It changes this process only: the environment
chooses the interpreter and the runner, vLLM finds a Triton back-end named "cpu" that says it is
active, and loops of a kernel count with the interpreter's tensors, as compiled ones do.
"""

from __future__ import annotations

import os
import types
from typing import Any


class _ActiveDriver:
    @staticmethod
    def is_active() -> bool:
        return True


def install() -> None:
    """Make this process one where vLLM runs V2, interpreted."""
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    from triton.backends import backends
    from triton.runtime import interpreter

    backends.clear()
    backends["cpu"] = types.SimpleNamespace(driver=_ActiveDriver, compiler=object)
    patch_language = interpreter._patch_lang_core

    def with_tensors_in_loops(language: Any, scope: Any) -> None:
        patch_language(language, scope)
        plain = language.range

        def tensors(*args: Any, **options: Any) -> Any:
            return map(interpreter._implicit_cvt, plain(*args, **options))

        scope.set_attr(language, "range", tensors)

    interpreter._patch_lang_core = with_tensors_in_loops
