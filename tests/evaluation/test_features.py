"""Feature extraction and the checks of labelled features."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cjepa.errors import DivergedError, InputError
from cjepa.evaluation.features import LabelledFeatures, constant_dimensions, extract_features

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cat")


class Patches(nn.Module):
    """Each pixel is a patch; dropout and batch norm behave differently in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.dropout(self.linear(images.flatten(2).transpose(1, 2)))
        return self.norm(patches.transpose(1, 2)).transpose(1, 2)


class Items(Dataset[Tensor]):
    def __init__(self, items: Tensor) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        return self.items[index]


@pytest.fixture
def encoder() -> Patches:
    torch.manual_seed(0)
    return Patches()


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (7, 3, 4, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def expected(encoder: Patches, images: Tensor) -> Tensor:
    normalised = (images.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    pixel_mean = normalised.mean((2, 3))  # evaluation mode is affine in the pixels, so means may be taken first
    outputs = pixel_mean @ encoder.linear.weight.double().T + encoder.linear.bias.double()
    return (outputs / (1 + encoder.norm.eps) ** 0.5).detach().float()


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_features_are_the_mean_over_patches_in_order(encoder: Patches, images: Tensor, batch_size: int) -> None:
    features = extract_features(encoder, images, MEAN, STD, device=CPU, batch_size=batch_size)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected(encoder, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_gives_the_features_of_its_tensor(encoder: Patches, images: Tensor, workers: int) -> None:
    from_tensor = extract_features(encoder, images, MEAN, STD, device=CPU, batch_size=3)
    state = torch.get_rng_state()
    from_items = extract_features(encoder, Items(images), MEAN, STD, device=CPU, batch_size=3, workers=workers)
    assert torch.equal(from_items, from_tensor)
    assert torch.equal(torch.get_rng_state(), state), "evaluating must not advance the generator of the training"


def test_several_views_of_an_image(encoder: Patches, images: Tensor) -> None:
    views = torch.stack([images, images.flip(0)], dim=1)
    features = extract_features(encoder, Items(views), MEAN, STD, device=CPU, batch_size=4)
    assert features.shape == (7, 2, 5)
    torch.testing.assert_close(features[:, 0], expected(encoder, images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features[:, 1], features[:, 0].flip(0))


def test_modes_and_gradients_are_left_as_they_were(encoder: Patches, images: Tensor) -> None:
    encoder.train()
    encoder.norm.eval()
    features = extract_features(encoder, images, MEAN, STD, device=CPU)
    assert (encoder.training, encoder.dropout.training, encoder.norm.training) == (True, True, False)
    assert not features.requires_grad
    probe = nn.Linear(5, 2)
    probe(features).sum().backward()  # inference tensors would refuse this
    assert probe.weight.grad is not None


def test_modes_are_restored_after_an_error(encoder: Patches, images: Tensor) -> None:
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(encoder, images, MEAN, STD, device=CPU, progress=interrupt)
    assert encoder.dropout.training


def test_bfloat16_is_used_and_stays_close(encoder: Patches, images: Tensor) -> None:
    exact = extract_features(encoder, images, MEAN, STD, device=CPU)
    rounded = extract_features(encoder, images, MEAN, STD, device=CPU, precision="bfloat16")
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02)


def test_progress_counts_the_items_done(encoder: Patches, images: Tensor) -> None:
    counts: list[int] = []
    extract_features(encoder, images, MEAN, STD, device=CPU, batch_size=3, progress=counts.append)
    assert counts == [3, 6, 7]


def test_unusable_input_is_refused(encoder: Patches, images: Tensor) -> None:
    with pytest.raises(InputError, match="at least one"):
        extract_features(encoder, Items(images[:0]), MEAN, STD, device=CPU)
    with pytest.raises(InputError, match="at least one"):
        extract_features(encoder, images[:0], MEAN, STD, device=CPU)
    with pytest.raises(AssertionError, match="uint8"):
        extract_features(encoder, Items(images.float()), MEAN, STD, device=CPU)
    encoder.linear.bias.data[0] = torch.nan
    with pytest.raises(DivergedError, match="--checkpoint best"):
        extract_features(encoder, images, MEAN, STD, device=CPU)


def test_constant_dimensions_ignores_rounding_but_not_small_content() -> None:
    features = torch.full((50, 3), 2.0)
    features[:, 1] += 1e-7 * torch.randn(50, generator=torch.Generator().manual_seed(0))
    features[:, 2] += 1e-4 * torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert constant_dimensions(features).tolist() == [True, True, False]
    assert constant_dimensions(torch.zeros(4, 2)).all()


def select(train_labels: list[int], test_labels: list[int]) -> LabelledFeatures:
    train = torch.arange(len(train_labels), dtype=torch.float32).view(-1, 1)
    test = torch.arange(len(test_labels), dtype=torch.float32).view(-1, 1)
    return LabelledFeatures.select(
        train, np.array(train_labels, dtype=np.int64), test, np.array(test_labels, dtype=np.int64), CLASSES
    )


def test_images_without_a_label_are_left_out() -> None:
    features = select([-1, 0, 2, -1], [2, -1])
    assert features.train.flatten().tolist() == [1, 2]
    assert features.train_labels.tolist() == [0, 2]
    assert features.test.flatten().tolist() == [0]
    assert features.test_labels.tolist() == [2]


@pytest.mark.parametrize(
    ("train_labels", "test_labels", "message"),
    [
        ([-1, -1], [0, 1], "none of the training images has a label; put the images of each class into a folder"),
        ([0, 1], [-1], "none of the test images has a label"),
        ([1, 1, -1], [1], "all training images are of the class bee.*at least two classes"),
        ([0, 1], [2, 2], r"no class of the test images \(cat\) is one of the training images \(ant, bee\); call the"),
        ([0, 1], [0, 2], r"no training image for 1 of the classes of the test images \(cat\); add training images"),
        ([0, 3], [0, 1], "training labels run from 0 to 3, but there are 3 classes; number the classes from 0 to 2"),
        ([0, 1], [-2, 1], "test labels run from -2 to 1"),
    ],
)
def test_unusable_labels_are_refused(train_labels: list[int], test_labels: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(train_labels, test_labels)


def test_a_class_without_test_images_is_allowed() -> None:
    assert len(select([0, 1, 2], [0, 1]).test) == 2


def test_many_missing_classes_are_cut_short_in_the_message() -> None:
    labels = torch.arange(30)
    with pytest.raises(InputError, match=r"28 of the classes .*\(2, 3, 4, 5, 6, \.\.\.\)"):
        LabelledFeatures(torch.zeros(2, 1), labels[:2], torch.zeros(30, 1), labels, tuple(map(str, range(30))))


def test_features_that_are_not_finite_are_refused() -> None:
    train = torch.tensor([[0.0], [torch.inf]])
    with pytest.raises(InputError, match="not finite"):
        LabelledFeatures(train, torch.tensor([0, 1]), torch.zeros(1, 1), torch.tensor([0]), CLASSES)
