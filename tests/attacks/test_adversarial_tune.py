import numpy as np
import pytest
import torch
from attack_victims import data, digits, victim
from torch import nn
from torch.nn.functional import cross_entropy

from fp_audit.attacking import attack, open_victim
from fp_audit.attacks._adversarial import against, worst_case
from fp_audit.attacks.adversarial_tune import AdversarialTune
from fp_audit.errors import UsageError
from fp_audit.model import LoadOptions
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import adapter, locate_one

BALL = {"epsilon": 0.1, "steps": 5, "step_size": 0.03}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


def images():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def one_by_one(module, batch, labels):
    """PGD as Madry et al. write it, an image at a time."""
    torch.manual_seed(2)
    noise = BALL["epsilon"] * (2 * torch.rand(batch.shape) - 1)
    found = []
    for image, label, start in zip(batch, labels, noise, strict=True):
        x = torch.clamp(image + start, 0, 1)
        for _ in range(BALL["steps"]):
            x = x.detach().requires_grad_()
            cross_entropy(module(x[None]), label[None]).backward()
            x = x + BALL["step_size"] * x.grad.sign()
            x = torch.clamp(torch.clamp(x, image - BALL["epsilon"], image + BALL["epsilon"]), 0, 1)
        found.append(x.detach())
    return torch.stack(found)


def test_the_inner_maximum_is_that_of_one_image_at_a_time():
    module, batch, labels = network(), images(), torch.tensor([0, 1, 2, 3, 4, 0])
    torch.manual_seed(2)
    found = worst_case(module, batch, labels, BALL)
    torch.testing.assert_close(found, one_by_one(module, batch, labels))
    assert (found - batch).abs().max() <= BALL["epsilon"] + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert cross_entropy(module(found), labels) > cross_entropy(module(batch), labels)


def test_without_a_step_size_it_follows_from_epsilon():
    module, batch, labels = network(), images(), torch.tensor([0, 1, 2, 3, 4, 0])
    given = {"epsilon": 0.1, "steps": 5}
    torch.manual_seed(2)
    derived = worst_case(module, batch, labels, {**given, "step_size": 0.0})
    torch.manual_seed(2)
    assert torch.equal(derived, worst_case(module, batch, labels, {**given, "step_size": 2.5 * 0.1 / 5}))


def test_the_loss_is_that_of_the_changed_images_and_statistics_move_once():
    module, batch, labels = network().train(), images(), torch.tensor([0, 1, 2, 3, 4, 0])
    torch.manual_seed(2)
    loss = against(module, BALL)(batch, labels)
    assert module.training
    assert module[1].num_batches_tracked == 1
    other = network()
    expected = cross_entropy(other.train()(one_by_one(network(), batch, labels)), labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_surrogate_withstands_adversarial_examples(tmp_path):
    options = {"epochs": 4, "epsilon": 0.15, "steps": 3, "step_size": 0.0, "batch": 64, "learning_rate": 0.02}
    provenance = attack("adversarial-tune", str(victim("onnx")), data(), tmp_path / "out", options=options)
    assert provenance.fidelity.accuracy > 0.85
    target = open_victim(str(victim("onnx")), data())
    artifact = locate_one(str(tmp_path / "out"), SourceOptions()).artifact
    tuned = adapter("onnx").load_white(artifact, LoadOptions(preprocess=target.opening.preprocess)).module
    before = target.adapter.load_white(target.artifact, target.opening).module
    batch = torch.from_numpy(digits().pixels[:300].astype(np.float32) / 255)
    labels = torch.from_numpy(digits().labels[:300])

    def robust(module):
        return (module(worst_case(module, batch, labels, options)).argmax(1) == labels).float().mean()

    assert robust(tuned) > robust(before) + 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, r"epsilon is 0.0: expected a distance in \(0, 1\]"),
        ({"steps": 0}, "steps is 0: expected 1 or more"),
        ({"step_size": -0.1}, "step_size is -0.1: expected a distance"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UsageError, match=message):
        AdversarialTune(**options)
