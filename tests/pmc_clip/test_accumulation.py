"""A batch in parts gives the losses and gradients of the batch in one piece."""

import weakref
from functools import partial

import pytest
import torch

from pmc_clip.accumulation import accumulate
from tests.accumulation_cases import (
    WEIGHTS,
    in_one_graph,
    match_loss,
    parts_of,
    small_model,
    take_gradients,
)


def _assert_same(found, expected, tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def _both(model, parts) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Losses and gradients: accumulated, and of the batch in one graph, from the same random state."""
    torch.manual_seed(5)
    losses = accumulate(model, parts, match_loss, WEIGHTS)
    accumulated = losses._asdict() | take_gradients(model)
    torch.manual_seed(5)
    expected = in_one_graph(model, parts)._asdict() | take_gradients(model)
    return accumulated, expected


@pytest.mark.parametrize("bias", [False, True], ids=["contrastive", "siglip"])
@pytest.mark.parametrize(
    ("sizes", "unlabelled"),
    [((4, 4), ()), ((1, 4, 2), (1,)), ((3, 3), (0, 1)), ((1,), ()), ((1, 1, 1), (2,))],
    ids=["even", "uneven", "nothing labelled", "batch of one", "parts of one"],
)
def test_parts_give_the_gradients_of_one_graph_with_the_same_dropout(bias, sizes, unlabelled):
    accumulated, expected = _both(small_model(bias=bias), parts_of(sizes, unlabelled=unlabelled))
    _assert_same(accumulated, expected)
    assert ("logit_bias" in accumulated) == bias
    if sum(sizes) > 2:
        assert accumulated["logit_scale"].abs() > 1e-4


def test_parts_without_labels_train_the_features_alone():
    model = small_model(mlm=False)
    accumulated, expected = _both(model, parts_of((2, 3), mlm=False))
    assert accumulated.pop("mlm") is expected.pop("mlm") is None
    _assert_same(accumulated, expected)
    assert accumulated["total"] == accumulated["match"]


def test_without_dropout_parts_give_the_gradients_of_one_pass_over_the_batch():
    model, parts = small_model(dropout=0.0), parts_of((1, 4, 3))
    accumulated = accumulate(model, parts, match_loss, WEIGHTS)._asdict() | take_gradients(model)
    expected = in_one_graph(model, parts_of((8,)))._asdict() | take_gradients(model)
    _assert_same(accumulated, expected)


def test_dropout_makes_a_difference_and_goes_on_after_the_batch():
    model, parts = small_model(), parts_of((2, 2))
    torch.manual_seed(5)
    first = accumulate(model, parts, match_loss, WEIGHTS)
    after_first = torch.get_rng_state()
    second = accumulate(model, parts, match_loss, WEIGHTS)
    assert first.match != second.match
    torch.manual_seed(5)
    in_one_graph(model, parts)
    assert torch.equal(torch.get_rng_state(), after_first)


def test_gradients_are_added_to_those_that_are_there():
    model, parts = small_model(dropout=0.0), parts_of((2, 1))
    accumulate(model, parts, match_loss, WEIGHTS)
    once = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    accumulate(model, parts, match_loss, WEIGHTS)
    _assert_same(take_gradients(model), {name: 2 * gradient for name, gradient in once.items()})


def test_parts_in_half_precision_give_the_gradients_of_one_graph_in_half_precision():
    model, parts = small_model(), parts_of((2, 3))
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    torch.manual_seed(5)
    losses = accumulate(model, parts, match_loss, WEIGHTS, autocast=autocast)
    accumulated = losses._asdict() | take_gradients(model)
    torch.manual_seed(5)
    with autocast():
        expected = in_one_graph(model, parts)._asdict() | take_gradients(model)
    _assert_same(accumulated, expected, tolerance=2e-2)


def test_a_frozen_image_tower_gets_no_gradients():
    model, parts = small_model(), parts_of((2, 3))
    model.visual.requires_grad_(requires_grad=False)
    accumulated, expected = _both(model, parts)
    _assert_same(accumulated, expected)
    assert "text_projection" in accumulated
    assert "visual.conv1.weight" not in accumulated


def test_running_statistics_move_once_per_part():
    parts = parts_of((2, 3, 2))
    accumulated, plain = small_model().train(), small_model().train()
    accumulate(accumulated, parts, match_loss, WEIGHTS)
    with torch.no_grad():
        for part in parts:
            plain(part.images, part.tokens, layout=part.layout)
    assert plain.visual.bn1.num_batches_tracked == 3
    _assert_same(dict(accumulated.named_buffers()), dict(plain.named_buffers()))


def test_batch_norm_normalises_both_passes_by_the_part():
    accumulated, expected = _both(small_model().train(), parts_of((2, 3)))
    _assert_same(accumulated, expected, tolerance=1e-4)


def test_running_statistics_move_again_after_an_error_in_a_part():
    model, parts = small_model().train(), parts_of((2, 2))
    model.text_projection.register_hook(_refuse)
    with pytest.raises(RuntimeError, match="refused"):
        accumulate(model, parts, match_loss, WEIGHTS)
    before = model.visual.bn1.num_batches_tracked.clone()
    model.encode_image(parts[0].images)
    assert model.visual.bn1.num_batches_tracked == before + 1


def _refuse(gradient: torch.Tensor) -> None:
    raise RuntimeError("refused")


def test_no_activations_are_left_when_the_features_are_compared():
    model, activations = small_model(), []
    model.visual.layer1.register_forward_hook(lambda *call: activations.append(weakref.ref(call[-1])))
    alive = []

    def watch(*features):
        alive.extend(activation() is not None for activation in activations)
        return match_loss(*features)

    accumulate(model, parts_of((2, 2)), watch, WEIGHTS)
    assert alive == [False, False]


def test_the_fusion_transformer_is_computed_once_per_part():
    model, calls = small_model(), []
    model.fusion_module.register_forward_hook(lambda *call: calls.append(call))
    accumulate(model, parts_of((2, 2)), match_loss, WEIGHTS)
    assert len(calls) == 2


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_gradients():
    model, parts = small_model(), parts_of((2, 2))
    torch.manual_seed(5)
    expected = accumulate(model, parts, match_loss, WEIGHTS)._asdict() | take_gradients(model)
    compiled = torch.compile(model, backend="eager")
    torch.manual_seed(5)
    losses = accumulate(compiled, parts, match_loss, WEIGHTS)
    _assert_same(losses._asdict() | take_gradients(model), expected)
