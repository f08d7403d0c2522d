"""One forward: positions that do not depend on padding, evaluation mode for a scope, unwrapping."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers.scorer_helpers import distance, random_sequences
from seqproc.models.wrappers import unwrap
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer, forward_logits
from seqproc.scorers.forward import device_of, evaluating

LENGTHS = (4, 9, 1, 7)
FAMILIES = ["tiny_llama", "tiny_qwen2", "tiny_gpt2", "tiny_opt"]


@pytest.fixture
def tiny_opt():
    """OPT: learned absolute positions with an offset of its own."""
    from transformers import AutoModelForCausalLM, OPTConfig

    def make(**changes: Any) -> Any:
        config = OPTConfig(
            vocab_size=60,
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            word_embed_proj_dim=16,
            init_std=0.2,
            **changes,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

    return make


def left_padded() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = max(LENGTHS)
    ids = torch.randint(2, 50, (len(LENGTHS), width), generator=generator)
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in LENGTHS])
    return ids, mask


def worst_gap(padded: torch.Tensor, model: nn.Module, ids: torch.Tensor) -> float:
    """Largest distance of a padded batch's logits from those of each sequence alone."""
    gaps = []
    for row, length in enumerate(LENGTHS):
        alone = model(input_ids=ids[row : row + 1, -length:], use_cache=False).logits[0]
        gaps.append(float((padded[row, -length:] - alone).abs().max()))
    return max(gaps)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_left_padding_does_not_move_positions(family, request):
    model = request.getfixturevalue(family)()
    ids, mask = left_padded()
    assert worst_gap(forward_logits(model, ids, mask), model, ids) < 2e-5
    mapping = dict(model.named_parameters())
    assert worst_gap(forward_logits(model, ids, mask, mapping), model, ids) < 2e-5


@torch.no_grad()
def test_left_padding_without_position_ids_does_move_them(tiny_gpt2):
    model = tiny_gpt2()
    ids, mask = left_padded()
    careless = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert worst_gap(careless, model, ids) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_right_padding_is_invisible(family, request):
    model = request.getfixturevalue(family)()
    ids, mask = left_padded()
    right = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        right[row, :length] = ids[row, -length:]
    logits = forward_logits(model, right, mask.flip(1))
    aligned = torch.stack([logits[row].roll(-n, 0) for row, n in enumerate(LENGTHS)])
    assert worst_gap(aligned, model, ids) < 2e-5


class Recorder(nn.Module):
    """Returns bare logits and remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def forward(self, input_ids, attention_mask, use_cache, position_ids=None):
        self.calls.append({"use_cache": use_cache, "position_ids": position_ids})
        return torch.zeros(*input_ids.shape, 5)


class WithoutPositions(Recorder):
    def forward(self, input_ids, attention_mask, use_cache):  # type: ignore[override]
        return super().forward(input_ids, attention_mask, use_cache)


def test_what_a_model_is_called_with():
    ids, mask = left_padded()
    model = Recorder()
    assert forward_logits(model, ids, mask).shape == (4, 9, 5)
    forward_logits(model, ids, mask.flip(1))
    left, right = model.calls
    assert left["use_cache"] is right["use_cache"] is False
    assert left["position_ids"][0].tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 3]
    assert right["position_ids"] is None
    plain = WithoutPositions()
    forward_logits(plain, ids, mask)
    assert plain.calls[0]["position_ids"] is None


@pytest.mark.filterwarnings("ignore:.*:UserWarning:peft")
@torch.no_grad()
def test_positions_are_derived_through_a_peft_wrapper(tiny_gpt2):
    from peft import LoraConfig, get_peft_model

    model = tiny_gpt2()
    config = LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    adapted = get_peft_model(model, config).eval()
    ids, mask = left_padded()
    assert worst_gap(forward_logits(adapted, ids, mask), adapted, ids) < 2e-5


# Modes and wrappers.


def test_evaluating_gives_every_submodule_its_own_mode_back():
    inner = nn.Sequential(nn.Dropout(), nn.Dropout())
    model = nn.Sequential(nn.Linear(2, 2), inner)
    model.train()
    inner.eval()
    inner[1].train()
    before = [module.training for module in model.modules()]
    assert before == [True, True, False, False, True]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert [module.training for module in model.modules()] == before


def test_dropout_is_off_while_scoring_and_on_again_after(tiny_gpt2):
    model = tiny_gpt2(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    sequences = random_sequences(40)
    scorer = TeacherForcingScorer(model)
    policy = SamplingPolicy()
    still = scorer.score(sequences, policy, batch_size=4)[0]
    model.train()
    assert distance(still, scorer.score(sequences, policy, batch_size=4)[0]) == 0
    graphed = scorer.score_with_grad(sequences, policy, batch_size=4)
    assert distance(still, graphed) < 1e-6
    assert all(module.training for module in model.modules())
    ids, mask = left_padded()
    torch.manual_seed(0)
    noisy = [forward_logits(model, ids, mask) for _ in range(2)]
    assert (noisy[0] - noisy[1]).abs().max() > 1e-2  # the twin: dropout does act in this model


def test_unwrap_takes_data_parallel_off(tiny_llama):
    model = tiny_llama()
    assert unwrap(model) is model
    wrapped = nn.DataParallel(nn.DataParallel(model))
    assert unwrap(wrapped) is model
    assert TeacherForcingScorer(wrapped).model is model
    assert unwrap(nn.Sequential(model)) is not model


def test_device_of():
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(nn.Identity()) == torch.device("cpu")
