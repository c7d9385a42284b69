import numpy as np
import pytest
import torch

from cjepa.evaluation import representation
from cjepa.visualization import save, spectrum
from cjepa.visualization.spectrum import effective_rank, singular_values


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


EMBEDDINGS = {
    "random": random(40, 8),
    "fewer images than dimensions": random(5, 16),
    "low rank": random(40, 2) @ random(2, 8, seed=1) + 3.0,
    "collapsed": torch.full((40, 8), 0.7),
    "collapsed but for rounding": 1.0 + 1e-8 * random(40, 8),
    "one image": random(1, 4),
}


@pytest.mark.parametrize("embeddings", EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_the_numbers_are_those_of_the_evaluation(embeddings):
    values = singular_values(embeddings)
    np.testing.assert_allclose(values, representation.singular_values(embeddings), atol=1e-12)
    assert effective_rank(values) == pytest.approx(representation.effective_rank(embeddings))


def test_one_line_for_each_encoder_relative_to_its_largest_value(tmp_path):
    features = {"untrained": random(40, 8), "C-JEPA": 100 * random(40, 12, seed=1)}
    figure = spectrum(features)
    lines = figure.axes[0].lines
    for line, embeddings in zip(lines, features.values(), strict=True):
        values = singular_values(embeddings)
        np.testing.assert_allclose(line.get_ydata(), values / values[0])
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, len(values) + 1))
    assert figure.axes[0].get_yscale() == "log"
    assert figure.get_suptitle() == "Spectrum of the pooled embeddings of 40 images"
    ranks = [representation.effective_rank(embeddings) for embeddings in features.values()]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        f"untrained: effective rank {ranks[0]:.1f} of 8",
        f"C-JEPA: effective rank {ranks[1]:.1f} of 12",
    ]
    save(figure, tmp_path / "spectrum.png")


def test_values_of_zero_are_left_out_and_collapse_is_named(tmp_path):
    figure = spectrum({name: EMBEDDINGS[name] for name in ("low rank", "collapsed")})
    low_rank, collapsed = figure.axes[0].lines
    assert len(low_rank.get_xdata()) == 2
    assert len(collapsed.get_xdata()) == 0
    assert collapsed.get_label() == "collapsed: effective rank 1.0 of 8 (all embeddings are equal)"
    save(figure, tmp_path / "spectrum.png")


def test_embeddings_of_different_images_are_refused():
    with pytest.raises(AssertionError, match="different numbers of images"):
        spectrum({"a": random(4, 3), "b": random(5, 3)})
