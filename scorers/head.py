"""A causal language model in two parts: a backbone to hidden states, and a head to logits.

The head is the model's own forward with the hidden states put in the place of its backbone, so
that whatever the model does to its logits (capping, scaling, a bias, a tied or adapted matrix) is
done by its own code. Whether a model can be taken apart so is found by `examination`. One that
cannot is used whole: what stands for its hidden states then are its logits.

Knows batches and parameter mappings; nothing of policies.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from seqproc.models.wrappers import without_adapters
from seqproc.scorers.batching import Batch
from seqproc.scorers.forward import forward_logits
from seqproc.scorers.kernels.products import head_products

Mapped = Mapping[str, Tensor] | None


class CausalParts(Protocol):
    """What teacher forcing needs of a model."""

    vocabulary: int  # V, the number of logits that a state turns into; 1 when it is logits
    shares_prompts: bool

    def read(self, batch: Batch, mapping: Mapped) -> Tensor:
        """The states ``[R, D]`` that predict the batch's targets."""

    def head(self, mapping: Mapped, /) -> dict[str, Tensor]:
        """The tensors that `logits` reads, by names of its own: of a mapping or the model's own."""

    def logits(self, states: Tensor, head: Mapped, /) -> Tensor:
        """Logits ``[r, V]`` of some of the states; None: by the model's own head."""


def _part_of(mapping: Mapping[str, Tensor], model: nn.Module, part: nn.Module) -> dict[str, Tensor]:
    """What the mapping, by the model's names, says of a part's tensors, by the part's names."""
    names = _names_of_part(model, part)
    return {own: mapping[full] for own, full in names.items() if full in mapping}


def _names_of_part(model: nn.Module, part: nn.Module) -> dict[str, str]:
    """The part's names of its tensors, and the model's of the same.

    They are looked up anew each time: adapters come and go, and some models rebind buffers.
    """
    full = {id(tensor): name for name, tensor in model.named_buffers()}
    full |= {id(tensor): name for name, tensor in model.named_parameters()}
    own = [*part.named_parameters(), *part.named_buffers()]
    return {name: full[id(tensor)] for name, tensor in own if id(tensor) in full}


class WholeModel:
    """A model that is not taken apart: its states are its logits."""

    vocabulary = 1  # its states are there already: nothing to do in chunks
    shares_prompts = False

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def read(self, batch: Batch, mapping: Mapped) -> Tensor:
        """Logits ``[R, V]`` that predict the targets."""
        logits = forward_logits(self._model, batch.inputs, batch.inputs_mask, mapping)
        return logits.flatten(0, 1)[batch.read]

    def head(self, _: Mapped) -> dict[str, Tensor]:
        """Nothing: the logits are there already."""
        return {}

    def logits(self, states: Tensor, _: Mapped) -> Tensor:
        """The states themselves."""
        return states


class BackboneAndHead:
    """A Hugging Face causal model, with or without adapters, in its two parts.

    Args:
        model: the model; `AttributeError` when it has no backbone of its own.
        tiled_products: whether the head multiplies as in `seqproc.scorers.kernels.products`.
    """

    vocabulary: int
    shares_prompts = True

    def __init__(self, model: nn.Module, *, tiled_products: bool = True) -> None:
        base = without_adapters(model)
        self._slot = getattr(base, "base_model_prefix", "")
        backbone: nn.Module | None = base._modules.get(self._slot)
        if backbone is None:
            raise AttributeError(f"{type(base).__name__} has no backbone of its own")
        self._model, self._causal = model, base
        self._backbone = backbone
        self._output_class: Any = None
        self._tiled_products = tiled_products

    def read(self, batch: Batch, mapping: Mapped) -> Tensor:
        """Hidden states ``[R, D]`` that predict the targets; shared prompts computed once."""
        if batch.prompts is None:
            hidden = self._run(mapping, input_ids=batch.inputs, attention_mask=batch.inputs_mask)
            return hidden.flatten(0, 1)[batch.read]
        return self._read_shared(batch, mapping)

    def head(self, mapping: Mapped) -> dict[str, Tensor]:
        """The head's parameters and buffers."""
        shell = self._shell(None)
        own = dict(shell.named_buffers()) | dict(shell.named_parameters())
        return own if mapping is None else own | _part_of(mapping, self._model, shell)

    def logits(self, states: Tensor, head: Mapped) -> Tensor:
        """Logits ``[r, V]`` by the model's own forward behind its backbone."""
        shell = self._shell(self._output_class(last_hidden_state=states.unsqueeze(0)))
        placeholder = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
        arguments = {"input_ids": placeholder, "use_cache": False}
        tiles = head_products(states.device) if self._tiled_products else contextlib.nullcontext()
        with tiles:
            output = torch.func.functional_call(shell, dict(head or {}), (), arguments)
        logits: Tensor = output.logits
        return logits.squeeze(0)

    def _shell(self, output: Any) -> nn.Module:
        """The model with its backbone's output given; it shares everything else."""
        shell = copy.copy(self._causal)
        shell.__dict__["_modules"] = self._causal._modules | {self._slot: _Given(output)}
        return shell

    def _run(self, mapping: Mapped, **arguments: Any) -> Tensor:
        arguments = {"use_cache": False} | arguments
        if mapping is None:
            output = self._backbone(**arguments)
        else:
            own = _part_of(mapping, self._model, self._backbone)
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
            past_key_values=cache,
            use_cache=True,
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
                past_key_values=continued(cache, owners),
                use_cache=True,
            )
            rest.append(hidden.flatten(0, 1))
        return torch.cat([last, *rest])[batch.read]


class _Given(nn.Module):
    """Stands where the backbone was and returns what was computed before."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    @property
    def decoder(self) -> nn.Module:
        """Itself: OPT reaches through its backbone for the decoder in it."""
        return self

    def forward(self, *_: Any, **__: Any) -> Any:
        return self._output
