import numpy as np
import pytest
import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from timm_rs.data.mixture import PseudoLabel, SparseTargets, dense_targets


def sparse(labels, **settings):
    return torch.stack([SparseTargets(int, **settings)(label) for label in labels])


@pytest.mark.parametrize('top_k', [1, 3, 7])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_smoothing_as_a_sparse_target_is_timms_loss(smoothing, top_k):
    logits = torch.randn(16, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 7
    targets = dense_targets(sparse(labels.tolist(), num_classes=7, top_k=top_k, smoothing=smoothing), 7)
    torch.testing.assert_close(SoftTargetCrossEntropy()(logits, targets),
                               LabelSmoothingCrossEntropy(smoothing)(logits, labels), rtol=0, atol=1e-7)


def pseudo(probabilities, top_k):
    order = np.argsort(-probabilities)[:top_k]
    return PseudoLabel(order.astype(np.uint16), probabilities[order].astype(np.float16))


def test_all_classes_give_the_teachers_probabilities_and_few_the_likeliest_with_the_rest_spread():
    probabilities = np.array([0.5, 0.03125, 0.25, 0.09375, 0.125])
    whole = dense_targets(sparse([pseudo(probabilities, 5)], num_classes=5, top_k=5, smoothing=0.1), 5)
    torch.testing.assert_close(whole, torch.from_numpy(probabilities[None]).float())
    few = dense_targets(sparse([pseudo(probabilities, 2)], num_classes=5, top_k=2, smoothing=0.1), 5)
    torch.testing.assert_close(few, torch.tensor([[0.5, 0.25 / 3, 0.25, 0.25 / 3, 0.25 / 3]]))


def test_temperature_flattens_and_hard_makes_a_label_of_it():
    probabilities = np.array([0.64, 0.04, 0.16, 0.08, 0.08])
    settings = dict(num_classes=5, top_k=3, smoothing=0.2)
    flat = dense_targets(sparse([pseudo(probabilities, 3)], temperature=2.0, **settings), 5)[0]
    rest = 0.12 / 2
    roots = torch.tensor([0.64, rest, 0.16, 0.08, rest]) ** 0.5
    torch.testing.assert_close(flat, roots / roots.sum(), rtol=2e-3, atol=0)  # float16
    assert torch.equal(sparse([pseudo(probabilities, 3)], hard=True, **settings), sparse([0], **settings))


@pytest.mark.parametrize('ratio', [2, 3])
def test_one_mean_over_both_kinds_is_noisy_students_sum_of_two(ratio):
    """Its loss is mean(labelled) + ratio * mean(pseudo), at a rate for the labelled images alone."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(20, 4 * (1 + ratio), 6, generator=rng, dtype=torch.float64)
    targets = torch.randn(20, 4 * (1 + ratio), 3, generator=rng, dtype=torch.float64).softmax(-1)
    loss = SoftTargetCrossEntropy()

    def train(lr, weight_decay, loss_of):
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 3).double()
        optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
        for batch, target in zip(images, targets, strict=True):
            optimizer.zero_grad()
            loss_of(model(batch), target).backward()
            optimizer.step()
        return model.weight.detach()

    theirs = train(0.1, 0.04, lambda x, y: loss(x[:4], y[:4]) + ratio * loss(x[4:], y[4:]))
    ours = train(0.1 * (1 + ratio), 0.04 / (1 + ratio), loss)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
