import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfda.losses.importance import pixel_importance

KINDS = ["ratio", "difference", "top1"]


def random_probabilities(seed, classes=4, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(2, classes, 3, 5, generator=generator, dtype=dtype)).softmax(1)


def loop_importance(p, kind):
    """One pixel at a time: sort, take the two largest."""
    out = np.zeros((p.shape[0], *p.shape[2:]))
    for b, y, x in np.ndindex(out.shape):
        first, second = sorted(p[b, :, y, x], reverse=True)[:2]
        out[b, y, x] = {"ratio": 1 - second / first, "difference": first - second, "top1": first}[kind]
    return out


@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 150),
    scale=st.sampled_from([0.0, 0.1, 3.0, 1000.0]),  # all equal, nearly so, peaked, saturated
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(deadline=None, max_examples=40)
def test_value_against_a_loop(seed, classes, scale, kind, dtype):
    p = random_probabilities(seed, classes, scale, dtype)
    omega = pixel_importance(p, kind)
    assert omega.dtype == dtype
    assert omega.isfinite().all()
    assert (omega >= 0).all()
    assert (omega <= 1).all()
    np.testing.assert_allclose(omega.numpy(), loop_importance(p.numpy(), kind), atol=1e-6)


def test_a_tie_of_the_two_best_is_of_no_importance_and_certainty_of_all():
    p = torch.tensor([[0.4, 1.0], [0.4, 0.0], [0.2, 0.0]]).view(1, 3, 1, 2)
    assert pixel_importance(p, "ratio").flatten().tolist() == [0, 1]
    assert pixel_importance(p, "difference").flatten().tolist() == [0, 1]
    assert pixel_importance(p, "top1").flatten().tolist() == pytest.approx([0.4, 1])


def test_the_three_differ_where_two_classes_rival():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).view(1, 3, 1, 1)
    assert pixel_importance(p, "ratio").item() == pytest.approx(0.4)
    assert pixel_importance(p, "difference").item() == pytest.approx(0.2)
    assert pixel_importance(p).item() == pixel_importance(p, "ratio").item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_and_nothing_has_a_gradient(kind, dtype):
    p = random_probabilities(0, dtype=torch.float32).to(dtype).requires_grad_()
    omega = pixel_importance(p, kind)
    assert omega.dtype == torch.float32
    assert not omega.requires_grad
    np.testing.assert_allclose(omega.numpy(), loop_importance(p.detach().float().numpy(), kind), atol=1e-6)
