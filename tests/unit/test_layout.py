"""The flat layout of parameters."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2l_runner.layout import Layout

# Layout


@st.composite
def layouts(draw):
    shapes = draw(st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4))
    return Layout({f"p{i}": shape for i, shape in enumerate(shapes)})


@given(layouts(), st.integers(1, 4))
@settings(deadline=None)
def test_flatten_and_views_are_inverse(layout, count):
    flat = torch.randn(count, layout.size)
    views = layout.views(flat)
    assert {name: tuple(view.shape) for name, view in views.items()} == {
        name: (count, *shape) for name, shape in layout.shapes.items()
    }
    assert torch.equal(layout.flatten(views), flat)


@given(layouts(), st.integers(1, 4))
@settings(deadline=None)
def test_views_and_flatten_are_inverse(layout, count):
    params = {name: torch.randn(count, *shape) for name, shape in layout.shapes.items()}
    flat = layout.flatten(params)
    assert flat.shape == (count, sum(math.prod(shape) for shape in layout.shapes.values()))
    back = layout.views(flat)
    assert list(back) == list(params)
    assert all(torch.equal(back[name], params[name]) for name in params)


@given(layouts(), st.integers(1, 4))
@settings(deadline=None)
def test_views_share_memory_and_gradient(layout, count):
    flat = torch.randn(count, layout.size, requires_grad=True)
    views = layout.views(flat)
    for view in views.values():
        assert view.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    factors = {name: torch.randn_like(view) for name, view in views.items()}
    sum((view * factors[name]).sum() for name, view in views.items()).backward()
    assert flat.grad is not None
    assert torch.equal(flat.grad, layout.flatten(factors))


def test_flatten_follows_the_layout_and_not_the_dictionary():
    layout = Layout({"a": (2,), "b": (1,)})
    flat = layout.flatten({"b": torch.tensor([[3.0]]), "a": torch.tensor([[1.0, 2.0]])})
    assert flat.tolist() == [[1.0, 2.0, 3.0]]
