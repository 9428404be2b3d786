"""The head drops features as torch does, and its log-odds favour the positive class."""

import numpy as np
import pytest
import torch
from torch import nn

from fracture.models.head import Dropout, build_head, log_odds, predict_logits


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5])
def test_dropout_follows_the_law_of_torchs(p: float) -> None:
    """As many features dropped, the others scaled alike, others each time, none in eval mode."""
    torch.manual_seed(0)
    ours, ones = Dropout(p), torch.ones(4, 20_000)
    first, second = ours(ones), ours(ones)
    assert first.unique().tolist() == nn.Dropout(p)(ones).unique().tolist()
    assert (first == 0).float().mean() == pytest.approx(p, abs=0.01)
    assert torch.equal(first, second) == (p == 0)
    assert torch.equal(ours.eval()(ones), ones)


def test_the_head_is_one_linear_layer_whose_log_odds_favour_the_positive_class() -> None:
    head, features = build_head(8, 0.5).train(), torch.randn(6, 8)
    layer, logits = head.get_submodule("linear"), predict_logits(head, features)
    torch.testing.assert_close(logits, layer(features).detach())  # without dropout
    p = logits.double().softmax(1).numpy()
    for positive in (0, 1):
        expected = np.log(p[:, positive] / p[:, 1 - positive])
        np.testing.assert_allclose(log_odds(logits, positive), expected, rtol=1e-5)
