"""A cache of prompts that responses continue, against one that repeats prompts and keeps all."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from seqproc.scorers.continuation import continued

OWNERS = torch.tensor([2, 0, 0, 1, 2])


def filled(num_layers: int = 2) -> DynamicCache:
    """Three prompts of four tokens, two heads of width 3."""
    torch.manual_seed(0)
    cache = DynamicCache()
    for layer in range(num_layers):
        cache.update(torch.randn(3, 2, 4, 3), torch.randn(3, 2, 4, 3), layer)
    return cache


def test_every_layer_gives_what_a_cache_of_repeated_prompts_gives():
    ours, theirs = continued(filled(), OWNERS), filled()
    theirs.batch_select_indices(OWNERS)
    for layer in range(2):
        keys, values = torch.randn(5, 2, 6, 3), torch.randn(5, 2, 6, 3)
        found, expected = ours.update(keys, values, layer), theirs.update(keys, values, layer)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_only_the_prompts_are_kept():
    cache = continued(filled(), OWNERS)
    before = [(layer.keys, layer.values) for layer in cache.layers]
    cache.update(torch.randn(5, 2, 6, 3), torch.randn(5, 2, 6, 3), 0)
    assert [(layer.keys, layer.values) for layer in cache.layers] == before
    assert cache.layers[0].keys.shape == (3, 2, 4, 3)


def test_masks_are_as_long_as_prompt_and_response():
    cache = continued(filled(), OWNERS)
    assert cache.get_seq_length() == 4
    assert cache.get_mask_sizes(6, 0) == (10, 0)


def test_gradients_of_all_responses_reach_their_prompt():
    cache = filled(num_layers=1)
    prompt = cache.layers[0].keys.requires_grad_()
    keys, _ = continued(cache, OWNERS).update(*torch.zeros(2, 5, 2, 6, 3), 0)
    keys.sum().backward()
    counts = torch.bincount(OWNERS).to(prompt.dtype).view(3, 1, 1, 1)
    assert torch.equal(prompt.grad, counts.expand_as(prompt))
