"""A causal language model split in two: a backbone to hidden states, and a head to logits.

Logits are large. A model that is split computes them for a few hidden states at a time, and only
for those that predict a response's tokens.

The head is the model's own forward with its backbone replaced by a stored output. So the model's
own code does whatever it does to its logits: capping, scaling, a bias, a tied or adapted matrix.
`examination` finds whether a model can be split. One that cannot is called as a whole, and its
logits stand where hidden states would.

Depends on batches and parameter mappings; knows nothing of policies.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from seqproc.models.wrappers import without_adapters
from seqproc.scorers.batching import Batch
from seqproc.scorers.forward import forward_logits
from seqproc.scorers.kernels.products import head_products

Mapped = Mapping[str, Tensor] | None


class SplitModel(Protocol):
    """What teacher forcing needs of a model."""

    vocab_size: int  # V
    has_head: bool  # False: the "hidden states" are logits already
    can_share_prompts: bool

    def hidden_states(self, batch: Batch, mapping: Mapped) -> Tensor:
        """Hidden states ``[R, D]`` that predict the batch's targets."""
        ...

    def head_tensors(self, mapping: Mapped, /) -> dict[str, Tensor]:
        """Parameters and buffers that `logits` reads, from the mapping or else the model."""
        ...

    def logits(self, hidden: Tensor, head: Mapped, /) -> Tensor:
        """Logits ``[r, V]`` of some of the hidden states; None: by the model's own head."""
        ...


def _part_tensors(
    mapping: Mapping[str, Tensor], model: nn.Module, part: nn.Module
) -> dict[str, Tensor]:
    """Entries of a mapping that belong to a part of the model, under the part's own names."""
    names = _part_names(model, part)
    return {own: mapping[full] for own, full in names.items() if full in mapping}


def _part_names(model: nn.Module, part: nn.Module) -> dict[str, str]:
    """The name that a part has for each of its tensors, and the model's name for the same one.

    Looked up anew each time: adapters come and go, and some models rebind buffers.
    """
    full = {id(tensor): name for name, tensor in model.named_buffers()}
    full |= {id(tensor): name for name, tensor in model.named_parameters()}
    own = [*part.named_parameters(), *part.named_buffers()]
    return {name: full[id(tensor)] for name, tensor in own if id(tensor) in full}


class WholeModel:
    """A model that is not split: what it gives for hidden states are its logits."""

    has_head = False
    can_share_prompts = False

    def __init__(self, model: nn.Module, vocab_size: int) -> None:
        self._model, self.vocab_size = model, vocab_size

    def hidden_states(self, batch: Batch, mapping: Mapped) -> Tensor:
        """Logits ``[R, V]`` that predict the targets."""
        logits = forward_logits(self._model, batch.inputs, batch.inputs_mask, mapping)
        return logits.flatten(0, 1)[batch.read]

    def head_tensors(self, _: Mapped) -> dict[str, Tensor]:
        """No tensors: the logits are there already."""
        return {}

    def logits(self, hidden: Tensor, _: Mapped) -> Tensor:
        """The logits that it was given."""
        return hidden


class BackboneAndHead:
    """A Hugging Face causal model, with or without adapters, split in two.

    Args:
        model: the model; `AttributeError` when it has no backbone of its own.
        vocab_size: V.
        tiled_products: whether the head multiplies as in `seqproc.scorers.kernels.products`.
    """

    has_head = True
    can_share_prompts = True

    def __init__(self, model: nn.Module, vocab_size: int, *, tiled_products: bool = True) -> None:
        self.vocab_size = vocab_size
        base = without_adapters(model)
        self._slot = getattr(base, "base_model_prefix", "")
        backbone: nn.Module | None = base._modules.get(self._slot)
        if backbone is None:
            raise AttributeError(f"{type(base).__name__} has no backbone of its own")
        self._model, self._causal = model, base
        self._backbone = backbone
        self._output_class: Any = None
        self._tiled_products = tiled_products

    def hidden_states(self, batch: Batch, mapping: Mapped) -> Tensor:
        """Hidden states ``[R, D]`` that predict the targets; shared prompts computed once."""
        if batch.prompts is None:
            hidden = self._run(mapping, input_ids=batch.inputs, attention_mask=batch.inputs_mask)
            return hidden.flatten(0, 1)[batch.read]
        return self._read_shared(batch, mapping)

    def head_tensors(self, mapping: Mapped) -> dict[str, Tensor]:
        """The head's parameters and buffers."""
        around = self._model_around(None)
        own = dict(around.named_buffers()) | dict(around.named_parameters())
        return own if mapping is None else own | _part_tensors(mapping, self._model, around)

    def logits(self, hidden: Tensor, head: Mapped) -> Tensor:
        """Logits ``[r, V]``, by the model's own forward behind its backbone."""
        around = self._model_around(self._output_class(last_hidden_state=hidden.unsqueeze(0)))
        placeholder = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        arguments = {"input_ids": placeholder, "use_cache": False}
        tiles = head_products(hidden.device) if self._tiled_products else contextlib.nullcontext()
        with tiles:
            output = torch.func.functional_call(around, dict(head or {}), (), arguments)
        logits: Tensor = output.logits
        return logits.squeeze(0)

    def _model_around(self, output: Any) -> nn.Module:
        """A copy of the model, its backbone replaced by an output; it shares everything else."""
        shell = copy.copy(self._causal)
        shell.__dict__["_modules"] = self._causal._modules | {self._slot: _StoredBackbone(output)}
        return shell

    @property
    def _cache_argument(self) -> str:
        """What the backbone calls its key-value cache: transformers 5.24 renamed it."""
        accepts = inspect.signature(self._backbone.forward).parameters
        return "cache" if "cache" in accepts else "past_key_values"

    def _run(self, mapping: Mapped, **arguments: Any) -> Tensor:
        arguments = {"use_cache": False} | arguments
        if mapping is None:
            output = self._backbone(**arguments)
        else:
            own = _part_tensors(mapping, self._model, self._backbone)
            output = torch.func.functional_call(self._backbone, own, args=(), kwargs=arguments)
        self._output_class = type(output)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _read_shared(self, batch: Batch, mapping: Mapped) -> Tensor:
        """Prompts fill a cache, which each response then continues from the row of its prompt."""
        from transformers import DynamicCache

        from seqproc.scorers.continuation import continued

        assert batch.prompts is not None
        assert batch.prompts_mask is not None
        assert batch.owners is not None
        cache = DynamicCache()
        last = self._run(
            mapping,
            input_ids=batch.prompts,
            attention_mask=batch.prompts_mask,
            position_ids=(batch.prompts_mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=True,
            **{self._cache_argument: cache},
        )[:, -1]
        ahead, rest = batch.prompts_mask.sum(-1), []
        for rows, width in batch.parts():
            if width == 0:  # responses of one token, which the prompt predicts
                continue
            owners, mask = batch.owners[rows], batch.inputs_mask[rows, :width]
            # Padding repeats the position before it: no position is one that the model has not.
            steps = (mask.cumsum(-1) - 1).clamp(min=0)
            hidden = self._run(
                mapping,
                input_ids=batch.inputs[rows, :width],
                attention_mask=torch.cat([batch.prompts_mask[owners], mask], dim=-1),
                position_ids=ahead[owners].unsqueeze(-1) + steps,
                use_cache=True,
                **{self._cache_argument: continued(cache, owners)},
            )
            rest.append(hidden.flatten(0, 1))
        return torch.cat([last, *rest])[batch.read]


class _StoredBackbone(nn.Module):
    """Takes the backbone's place and returns a stored output."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    @property
    def decoder(self) -> nn.Module:
        """Itself: OPT reaches through its backbone for the decoder in it."""
        return self

    def forward(self, *_: Any, **__: Any) -> Any:
        return self._output
