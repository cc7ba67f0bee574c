"""The LSTM optimizer and its preprocessing: against torch's LSTM and the paper's formula, and its symmetries."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from l2l_runner.errors import ConfigError
from l2l_runner.kernels.preprocessing import FEATURES, preprocess
from l2l_runner.kernels.reference import lstm_cell
from problems import OPTIMIZER_FILES, PlainLSTM, lstm, plain

# Preprocessing


def paper(g: float, p: float) -> tuple[float, float]:
    """Andrychowicz et al. 2016, appendix A, as it stands there."""
    if abs(g) >= math.exp(-p):
        return math.log(abs(g)) / p, math.copysign(1, g)
    return -1.0, math.exp(p) * g


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0.1, 80))
@example(0.0, 10.0)
@example(-0.0, 10.0)
@example(5e-324, 10.0)  # the smallest denormal
@example(-2.2e-308, 10.0)
@example(1.7e308, 10.0)
@example(-1.7e308, 80.0)  # e^p g overflows, the feature mustn't
@example(math.exp(-10), 10.0)
@settings(deadline=None)
def test_log_sign_is_the_papers_formula(g, p):
    features = preprocess(torch.tensor([g], dtype=torch.float64), "log_sign", p)
    assert features.shape == (2, 1)
    assert features.flatten().tolist() == pytest.approx(paper(g, p), rel=1e-12, abs=1e-13)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.floats(0.1, 80))
@example(0.0, 80.0)
@example(1e-45, 10.0)
@example(3e38, 80.0)
@settings(deadline=None)
def test_log_sign_in_float32(g, p):
    features = preprocess(torch.tensor([g], dtype=torch.float32), "log_sign", p)
    assert features.dtype == torch.float32
    assert features.flatten().tolist() == pytest.approx(paper(g, p), rel=1e-4, abs=1e-5)


@given(st.floats(-1e3, 1e3, allow_subnormal=False), st.sampled_from([1.0, 5.0, 10.0]))
@example(0.0, 10.0)
@example(1e-300, 10.0)
@settings(deadline=None)
def test_log_sign_has_the_gradient_of_its_pieces(g, p):
    if math.isclose(abs(g), math.exp(-p), rel_tol=1e-9):
        return  # the kink has no derivative
    leaf = torch.tensor(g, dtype=torch.float64, requires_grad=True)
    slopes = [
        torch.autograd.grad(feature, leaf, retain_graph=True)[0].item() for feature in preprocess(leaf, "log_sign", p)
    ]
    expected = (1 / (p * g), 0.0) if abs(g) > math.exp(-p) else (0.0, math.exp(p))
    assert slopes == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("p", [1.0, 10.0, 50.0])
def test_log_sign_has_a_finite_gradient_at_zero(p):
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(preprocess(zero, "log_sign", p).sum(), zero, create_graph=True)
    assert slope.tolist() == pytest.approx([math.exp(p)] * 3)


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("shape", [(1, 7), (4, 3)], ids=["one-row", "four-rows"])
def test_features_come_first_and_elementwise(kind, shape):
    grads = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = preprocess(grads, kind, 10.0)
    assert features.shape == (FEATURES[kind], *shape)
    one_by_one = torch.stack([preprocess(g, kind, 10.0) for g in grads.flatten()], dim=1)
    assert torch.equal(features.flatten(1), one_by_one)


def test_none_is_the_gradient_itself():
    grads = torch.tensor([[0.0, -1e30, 1e-30]])
    assert torch.equal(preprocess(grads, "none", 10.0)[0], grads)


# Against torch's cells


@pytest.mark.parametrize(("inputs", "hidden"), [(1, 1), (2, 5), (7, 3)])
def test_cell_is_torchs_with_its_gates_in_another_order(inputs, hidden):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    cell = nn.LSTMCell(inputs, hidden, dtype=torch.float64)
    x, h, c = random(inputs, 6), random(hidden, 6), random(hidden, 6)
    # torch: input, forget, candidate, output, and two biases that are added; ours: input, forget, output, candidate.
    order = [*range(2 * hidden), *range(3 * hidden, 4 * hidden), *range(2 * hidden, 3 * hidden)]
    weight = torch.cat([cell.weight_ih, cell.weight_hh], dim=1)[order]
    bias = (cell.bias_ih + cell.bias_hh)[order]
    expected_h, expected_c = cell(x.T, (h.T, c.T))
    doubled = torch.ones(4 * hidden, dtype=torch.float64)
    doubled[3 * hidden :] = 2  # as the cell wants its candidate
    ours = lstm_cell(doubled.unsqueeze(1) * weight, doubled * bias, x, h, c)
    torch.testing.assert_close(ours.h, expected_h.T, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.c, expected_c.T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 30.0, 1e4])
def test_cell_is_as_good_as_float32_allows(scale):
    # From signals that almost vanish to gates that are all shut or all open.
    generator = torch.Generator().manual_seed(0)
    shapes = [(12, 5), (12,), (2, 50), (3, 50), (3, 50)]
    inputs = [scale * torch.randn(shape, generator=generator) for shape in shapes]
    single = lstm_cell(*inputs)
    double = lstm_cell(*(tensor.double() for tensor in inputs))
    torch.testing.assert_close(single.h.double(), double.h, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single.c.double(), double.c, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("coordinatewise", [True, False], ids=["coordinatewise", "whole-problem"])
@pytest.mark.parametrize("preprocessing", FEATURES)
def test_optimizer_is_torchs_stacked_lstm_and_a_linear_layer(layers, coordinatewise, preprocessing):
    hidden, problems, coordinates, steps, scale = 3, 5, 4, 6, 0.7
    optimizer = lstm(
        coordinates,
        hidden=hidden,
        layers=layers,
        coordinatewise=coordinatewise,
        preprocessing=preprocessing,
        output_scale=scale,
    )
    width = 1 if coordinatewise else coordinates
    stacked = nn.LSTM(width * FEATURES[preprocessing], hidden, layers, dtype=torch.float64)
    order = torch.arange(4 * hidden).view(4, hidden)[[0, 1, 3, 2]].flatten()
    with torch.no_grad():
        for i in range(layers):
            inputs = optimizer.weights[i].shape[1] - hidden
            getattr(stacked, f"weight_ih_l{i}").copy_(optimizer.weights[i][order, :inputs])
            getattr(stacked, f"weight_hh_l{i}").copy_(optimizer.weights[i][order, inputs:])
            getattr(stacked, f"bias_ih_l{i}").copy_(optimizer.biases[i][order])
            getattr(stacked, f"bias_hh_l{i}").zero_()
    grads = torch.randn(steps, problems, coordinates, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    columns = problems * coordinates if coordinatewise else problems
    if preprocessing == "none":
        features = grads.view(steps, columns, -1)
    else:
        features = torch.tensor(
            [[paper(g, 10.0) for g in step] for step in grads.flatten(1).tolist()], dtype=torch.float64
        )
        if coordinatewise:
            features = features.view(steps, columns, 2)
        else:  # all first features of a problem, then all second ones
            features = features.view(steps, problems, coordinates, 2).transpose(2, 3).reshape(steps, problems, -1)
    hs, (last_h, last_c) = stacked(features)
    expected = scale * (hs @ optimizer.readout_weight.T + optimizer.readout_bias).reshape(grads.shape)

    state = optimizer.init(torch.zeros(problems, coordinates, dtype=torch.float64))
    for t in range(steps):
        update, state = optimizer.update(grads[t], state, torch.zeros_like(grads[t]))
        torch.testing.assert_close(update, expected[t], rtol=1e-10, atol=1e-12)
    for i in range(layers):
        torch.testing.assert_close(state[2 * i], last_h[i].T, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(state[2 * i + 1], last_c[i].T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("coordinatewise", [True, False], ids=["coordinatewise", "whole-problem"])
@pytest.mark.parametrize("preprocessing", FEATURES)
def test_the_plain_reference_agrees(coordinatewise, preprocessing):
    # Other tests take gradients through the reference, so that it too must be right.
    optimizer = lstm(4, coordinatewise=coordinatewise, preprocessing=preprocessing)
    plain = PlainLSTM(optimizer)
    grads = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    grads[1] *= 1e-6  # below e^-p
    state = optimizer.init(torch.zeros(1, 4, dtype=torch.float64))
    for g in grads:
        update, state = optimizer.update(g.unsqueeze(0), state, torch.zeros(1, 4, dtype=torch.float64))
        torch.testing.assert_close(update[0], plain.update(g), rtol=1e-11, atol=1e-13)


# Symmetries


def updates(optimizer, grads):
    """The updates [steps, problems, coordinates] for gradients of that shape."""
    params = torch.zeros_like(grads[0])
    state = optimizer.init(params)
    out = []
    for g in grads:
        update, state = optimizer.update(g, state, params)
        out.append(update.detach())
    return torch.stack(out)


def some_grads(*shape, seed=3):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("preprocessing", FEATURES)
@given(st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
def test_permuted_coordinates_get_permuted_updates(preprocessing, order):
    optimizer, grads = lstm(preprocessing=preprocessing), some_grads(4, 2, 6)
    torch.testing.assert_close(
        updates(optimizer, grads[:, :, order]), updates(optimizer, grads)[:, :, order], rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("problems", [1, 2, 3, 4, 6, 12])
def test_coordinatewise_does_not_care_how_coordinates_make_up_problems(problems):
    optimizer, grads = lstm(), some_grads(4, 1, 12)
    split = updates(optimizer, grads.view(4, problems, -1))
    torch.testing.assert_close(split.view(4, 1, 12), updates(optimizer, grads), rtol=1e-12, atol=1e-13)


def test_coordinatewise_updates_depend_on_their_own_coordinate_alone():
    optimizer, grads = lstm(), some_grads(4, 2, 3)
    changed = grads.clone()
    changed[:, 1, 2] += 1.0
    moved = (updates(optimizer, changed) != updates(optimizer, grads)).any(0)
    assert moved.tolist() == [[False, False, False], [False, False, True]]


def test_whole_problem_updates_depend_on_their_own_problem_alone():
    optimizer, grads = lstm(3, coordinatewise=False), some_grads(4, 2, 3)
    changed = grads.clone()
    changed[:, 1, 2] += 1.0
    difference = (updates(optimizer, changed) - updates(optimizer, grads)).abs().amax(0)
    assert difference[0].max() < 1e-14
    assert difference[1].min() > 1e-6  # every coordinate sees the others


def test_updates_remember_earlier_gradients():
    optimizer, grads = lstm(), some_grads(4, 1, 3)
    changed = grads.clone()
    changed[0] += 1.0
    assert ((updates(optimizer, changed) - updates(optimizer, grads))[-1].abs() > 1e-6).all()


def test_update_is_a_pure_function():
    optimizer, grads = lstm(), some_grads(1, 2, 4)[0]
    params = some_grads(2, 4)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    inputs = [grads, params, *state]
    before = [tensor.clone() for tensor in inputs]
    one, _ = optimizer.update(grads, state, params)
    other, _ = optimizer.update(grads, state, params)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, before, strict=True))
    assert torch.equal(one, other)


# Construction


@pytest.mark.parametrize("preprocessing", FEATURES)
@pytest.mark.parametrize(("coordinatewise", "width"), [(True, 1), (False, 4)], ids=["coordinatewise", "whole-problem"])
def test_shapes(preprocessing, coordinatewise, width):
    optimizer = lstm(4, hidden=3, layers=2, coordinatewise=coordinatewise, preprocessing=preprocessing)
    first = width * FEATURES[preprocessing]
    assert [tuple(w.shape) for w in optimizer.weights] == [(12, first + 3), (12, 6)]
    assert [tuple(b.shape) for b in optimizer.biases] == [(12,), (12,)]
    assert tuple(optimizer.readout_weight.shape) == (width, 3)
    assert tuple(optimizer.readout_bias.shape) == (width,)
    params = torch.zeros(5, 4, dtype=torch.float64)
    columns = 20 if coordinatewise else 5
    state = optimizer.init(params)
    assert [tuple(tensor.shape) for tensor in state] == 4 * [(3, columns)]
    assert all((tensor == 0).all() and tensor.dtype == torch.float64 for tensor in state)
    update, following = optimizer.update(params + 1, state, params)
    assert update.shape == params.shape
    assert [tensor.shape for tensor in following] == [tensor.shape for tensor in state]


def test_whole_problem_lstm_refuses_problems_of_another_size():
    optimizer = lstm(4, coordinatewise=False)
    optimizer.fitted(plain(4))
    for refuse in (lambda: optimizer.fitted(plain(5)), lambda: optimizer.init(torch.zeros(2, 5))):
        with pytest.raises(ConfigError, match="built for problems of 4 coordinates, but the optimizee has 5"):
            refuse()


@pytest.mark.parametrize("coordinates", [1, 4, 100])
def test_coordinatewise_lstm_takes_problems_of_every_size(coordinates):
    optimizer = lstm(4)
    optimizer.fitted(plain(coordinates))
    assert updates(optimizer, some_grads(2, 3, coordinates)).shape == (2, 3, coordinates)


def test_the_same_seed_gives_the_same_bits():
    def bits(seed):
        torch.rand(1)  # the global generator has no part in it
        return [parameter.detach().numpy().tobytes() for parameter in lstm(seed=seed).parameters()]

    assert bits(7) == bits(7)
    assert all(one != other for one, other in zip(bits(7), bits(8), strict=True))


@pytest.mark.parametrize("hidden", [1, 4, 20])
def test_initial_parameters_are_torchs_uniform(hidden):
    values = torch.cat([parameter.detach().flatten() for parameter in lstm(hidden=hidden, layers=3).parameters()])
    assert values.abs().max() <= hidden**-0.5
    assert values.abs().max() > 0.8 * hidden**-0.5
    assert values.std().item() == pytest.approx(hidden**-0.5 / 3**0.5, rel=0.3)


def test_output_scale_scales_the_output():
    small, large = (updates(lstm(output_scale=scale), some_grads(3, 2, 4)) for scale in (0.1, 1.0))
    torch.testing.assert_close(small, 0.1 * large, rtol=1e-12, atol=1e-14)


def test_file_holds_the_papers_settings():
    node = OPTIMIZER_FILES["lstm"]
    settings = {key: node[key] for key in ("hidden", "layers", "coordinatewise", "preprocessing", "p", "output_scale")}
    assert settings == {
        "hidden": 20,
        "layers": 2,
        "coordinatewise": True,
        "preprocessing": "log_sign",
        "p": 10.0,
        "output_scale": 0.1,
    }
