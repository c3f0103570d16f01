import numpy as np
import pytest
import torch
from msgspec.structs import replace

from qpnuclei.errors import TrainingError
from qpnuclei.training.callbacks import TrainingCallbacks
from qpnuclei.training.student.batches import TrainingExample
from qpnuclei.training.student.fit import Unfinished, fit, learning_rate_factor, student_loss
from qpnuclei.training.student.pseudo_labels import PseudoLabels
from qpnuclei.training.student.recipe import StudentRecipe

TINY = StudentRecipe(
    name="tiny",
    base_channels=4,
    levels=2,
    max_channels=8,
    first_round_batches=60,
    batches_per_round=10,
    batch_size=2,
    crop_px=64,
    ema_decay=0.5,
    strong_colours=0.0,
    borrowed_colours=0.0,
    learning_rate=2e-2,
)


def _example():
    """Dark squares on bright ground."""
    rgb = np.full((128, 128, 3), 230, np.uint8)
    labels = np.zeros((128, 128), np.int32)
    for number, (y, x) in enumerate([(10, 10), (60, 20), (30, 80), (90, 90)], start=1):
        rgb[y : y + 24, x : x + 24] = (90, 60, 140)
        labels[y : y + 24, x : x + 24] = number
    return TrainingExample.of(rgb, PseudoLabels(labels, np.ones(labels.shape, np.float32)))


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_loss_is_its_formula():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 2, 3, 4))
    targets = rng.random((2, 3, 3, 4))
    f, c, w = targets[:, 0], targets[:, 1], targets[:, 2]
    p = _sigmoid(logits[:, 0])
    entropy = -(f * np.log(p) + (1 - f) * np.log(1 - p))
    dice = 1 - (2 * (w * p * f).sum() + 1) / ((w * (p + f)).sum() + 1)
    distance = (_sigmoid(logits[:, 1]) - c) ** 2
    expected = (w * entropy).sum() / w.sum() + 0.3 * dice + 2 * (w * distance).sum() / w.sum()

    loss = student_loss(
        torch.from_numpy(logits), torch.from_numpy(targets), dice_weight=0.3, centre_weight=2
    )

    assert loss.item() == pytest.approx(expected)


def test_pixels_of_no_weight_teach_nothing():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    targets = torch.rand(1, 3, 4, 4)
    targets[:, 2, :2] = 0

    student_loss(logits, targets, dice_weight=0.5, centre_weight=4).backward()

    assert logits.grad is not None
    assert (logits.grad[:, :, :2] == 0).all()
    assert (logits.grad[:, :, 2:] != 0).all()


def test_a_batch_without_any_weight_has_a_finite_loss():
    logits, targets = torch.randn(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)
    assert torch.isfinite(student_loss(logits, targets, dice_weight=0.5, centre_weight=4))


def test_learning_rate_rises_then_falls_to_nothing():
    factors = [learning_rate_factor(step, 600) for step in range(600)]

    assert factors[0] < 0.05
    assert np.argmax(factors) == 49
    assert np.all(np.diff(factors[50:]) < 0)
    assert factors[-1] < 1e-4


def test_learns_what_is_taught_and_repeats_itself():
    runs = [
        fit(
            TINY,
            [_example()],
            1,
            None,
            seed=7,
            device=torch.device("cpu"),
            callbacks=TrainingCallbacks(),
        )
        for _ in range(2)
    ]

    (student, loss), (again, _) = runs
    assert loss < 1.7  # the loss of random weights is about 2
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(tensor, again.state_dict()[name], rtol=0, atol=0)
    assert not student.training


def test_a_later_round_starts_from_its_teacher():
    cpu = torch.device("cpu")
    still = replace(TINY, later_learning_rate=1e-12, batches_per_round=1)
    teacher, _ = fit(TINY, [_example()], 1, None, seed=7, device=cpu, callbacks=TrainingCallbacks())

    student, _ = fit(
        still, [_example()], 2, teacher, seed=7, device=cpu, callbacks=TrainingCallbacks()
    )

    for (name, old), new in zip(teacher.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=1e-6, msg=name)


def test_stops_when_asked_to():
    class Impatient(TrainingCallbacks):
        def stop_requested(self):
            return True

    stopped = fit(
        TINY, [_example()], 1, None, seed=0, device=torch.device("cpu"), callbacks=Impatient()
    )

    assert isinstance(stopped, Unfinished)
    assert stopped.batches == 0


def test_a_loss_that_is_no_number_stops_with_advice():
    wild = replace(TINY, learning_rate=1e30, gradient_clip=1e30)

    with pytest.raises(TrainingError, match=r"round 1, batch \d+: the loss is (nan|inf)"):
        fit(
            wild,
            [_example()],
            1,
            None,
            seed=0,
            device=torch.device("cpu"),
            callbacks=TrainingCallbacks(),
        )
