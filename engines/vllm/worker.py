"""Methods for vLLM's workers: vLLM mixes them into its class, and our engine calls them by name.

Knows how vLLM keeps weights, which of its parts work and what they return; nothing about where
weights come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seqproc.engines.vllm.layers import Recording, Told
from seqproc.models.fingerprint import fingerprint

_MODEL_RUNNER_V2 = "vllm.v1.worker.gpu.model_runner"
_PROBED_ROWS = 512  # of a weight that vLLM keeps packed, read at a time


class WeightsExtension:
    """Methods of a vLLM worker; ``model_runner`` is the worker's own."""

    model_runner: Any
    _seqproc_recording: Recording | None = None

    def seqproc_reload(self, path: str) -> None:
        """Load a checkpoint's weights into the running model."""
        self.reload_weights(weights_path=path)  # type: ignore[attr-defined]  # the worker's
        for module in self.model_runner.get_model().modules():
            if _is_packed_beside_its_weight(module):
                # A head that is tied to the embedding gets no weights, and keeps its old packing.
                module.quant_method.process_weights_after_loading(module)

    def seqproc_runner(self) -> dict[str, Any]:
        """What this worker samples with: the fields of `vllm_runner.Runner`."""
        from vllm.v1.sample.ops import topk_topp_sampler

        bases = {base.__module__ for base in type(self.model_runner).__mro__}
        return {
            "model_runner": "V2" if _MODEL_RUNNER_V2 in bases else "V1",
            "top_p_backend": "triton" if topk_topp_sampler.HAS_TRITON else "sort",
            "fp64_gumbel": bool(self.model_runner.model_config.use_fp64_gumbel),
        }

    def seqproc_record(self, names: Sequence[str]) -> None:
        """Keep what modules return from now on, until `seqproc_recorded`."""
        self._seqproc_recording = Recording(self.model_runner.get_model(), names)

    def seqproc_recorded(self) -> Told:
        """What was kept; see `Recording.stop`."""
        recording, self._seqproc_recording = self._seqproc_recording, None
        return {} if recording is None else recording.stop()

    def seqproc_fingerprint(self, lora_id: int | None) -> str:
        """Digest of this worker's part of the weights, and of an active LoRA adapter."""
        with torch.inference_mode():
            return fingerprint(_tensors(self.model_runner.get_model(), lora_id))


def _tensors(model: nn.Module, lora_id: int | None) -> Iterator[tuple[str, Tensor]]:
    persistent = set(model.state_dict())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in persistent:
            yield name, tensor
    for name, module in model.named_modules():
        for start, rows in _packed_weight(module):
            yield f"{name}.packed.{start}", rows
    if lora_id is not None:
        yield from _adapter_tensors(model.lora_manager, lora_id)


def _packed_weight(module: Any) -> Iterator[tuple[int, Tensor]]:
    """What vLLM packs on a CPU, where torch cannot see it: read by multiplying with the identity.

    Each product has one term that is not zero, and so is the weight itself; only the sign of a
    zero is lost.
    """
    if not hasattr(module, "cpu_linear") or module.weight.is_meta:
        return
    if module.weight.numel():  # still there, and what is multiplied with in heads only
        if not _is_head(module):
            return
        width = module.weight.shape[1]
    else:
        width = module.input_size_per_partition
    for start in range(0, width, _PROBED_ROWS):
        rows = torch.zeros(min(_PROBED_ROWS, width - start), width, dtype=module.weight.dtype)
        rows.diagonal(offset=start).fill_(1)
        yield start, module.cpu_linear(rows, module.weight, None)


def _is_head(module: nn.Module) -> bool:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    return isinstance(module, ParallelLMHead)


def _is_packed_beside_its_weight(module: Any) -> bool:
    return _is_head(module) and hasattr(module, "cpu_linear") and module.weight.numel() > 0


def _adapter_tensors(manager: Any, lora_id: int) -> Iterator[tuple[str, Tensor]]:
    """The adapter as it lies in its slot of the stacked buffers that vLLM multiplies with."""
    slot = manager.lora_index_to_id.index(lora_id)
    for name, module in manager.modules.items():
        for kind, buffers in vars(module).items():
            if kind.endswith("_stacked"):
                for part, buffer in enumerate(buffers):
                    yield f"{name}.{kind}.{part}", buffer[slot]
