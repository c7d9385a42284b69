"""Whitening: what it makes of features, and why the linear head of segmentation has it."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from cjepa.errors import DivergedError
from cjepa.evaluation.pyramid import LinearHead
from cjepa.evaluation.whitening import SHRINKAGE, Moments, Whitening, root_of


def nearly_collinear(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """[n, 12] features and classes: one direction of noise in all of them, the classes in what is left."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    shared = torch.randn(count, 1, generator=generator)
    own = 0.3 * torch.randn(count, 12, generator=generator) + torch.eye(3, 12)[labels]
    return 5 + 3 * shared + 0.3 * own, labels


def told(features: Tensor, parts: int = 7) -> Whitening:
    moments = Moments(features.shape[1], torch.device("cpu"))
    for part in features.tensor_split(parts):
        moments.add(part)
    whitening = Whitening(features.shape[1])
    whitening.learn(moments)
    return whitening


def as_maps(features: Tensor) -> Tensor:
    """Rows as the places of one image of four columns."""
    return features.T.reshape(1, features.shape[1], -1, 4)


def test_features_that_were_seen_come_out_decorrelated() -> None:
    features, _ = nearly_collinear(4000, 0)
    white = told(features)(as_maps(features))[0].flatten(1).T
    torch.testing.assert_close(white.mean(0), torch.zeros(12), atol=1e-3, rtol=0)
    # W C W^T = I - SHRINKAGE R^-1 R^-T, R being the root of the shrunk correlation matrix.
    inverse = torch.linalg.inv(root_of(torch.corrcoef(features.T.double())))
    expected = torch.eye(12) - SHRINKAGE * (inverse @ inverse.T).float()
    torch.testing.assert_close(torch.cov(white.T, correction=0), expected, atol=2e-3, rtol=0)


def test_features_that_do_not_vary_become_zero() -> None:
    features, _ = nearly_collinear(400, 0)
    features[:, 5] = 0.1
    white = told(features)(as_maps(features))[0].flatten(1).T
    assert white.isfinite().all()
    constant = Moments(1, torch.device("cpu"))
    constant.add(torch.full((400, 1), 0.1))
    assert constant.whitening()[1].item() == 0


def test_bfloat16_around_it_does_not_reach_it() -> None:
    features, _ = nearly_collinear(400, 0)
    whitening, maps = told(features), as_maps(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whitening(maps), whitening(maps.float()))


@pytest.mark.parametrize(("whiten", "reaches"), [(True, True), (False, False)])
def test_with_few_steps_the_head_is_as_good_as_a_converged_one(whiten: bool, reaches: bool) -> None:
    """scikit-learn's regression, fitted to its end; batch norm alone is far behind after as many steps."""
    (train, labels), (test, truth) = nearly_collinear(4000, 0), nearly_collinear(1000, 1)
    converged = LogisticRegression(C=1e4, max_iter=5000).fit(train.numpy(), labels.numpy())
    best = 100 * float(np.mean(converged.predict(test.numpy()) == truth.numpy()))
    torch.manual_seed(0)
    head = LinearHead(12, 3, whiten)
    if isinstance(head.norm, Whitening):
        head.norm.load_state_dict(told(train).state_dict())
    optimizer = torch.optim.AdamW(head.classify.parameters(), lr=1e-2)
    for step in range(300):
        rows = torch.arange(64) + 64 * step
        loss = cross_entropy(head(as_maps(train[rows % 4000]))[0].flatten(1).T, labels[rows % 4000])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = head.eval()(as_maps(test))[0].flatten(1).argmax(0)
    accuracy = 100 * float((found == truth).float().mean())
    assert (accuracy > best - 2) == reaches


def test_embeddings_that_are_not_finite_are_refused() -> None:
    moments = Moments(2, torch.device("cpu"))
    moments.add(torch.tensor([[1.0, torch.nan], [0.0, 1.0]]))
    with pytest.raises(DivergedError, match="not finite"):
        moments.whitening()
