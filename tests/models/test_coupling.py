"""The coupling is a bijection whose Jacobian is what it says."""

import pytest
import torch

from nsm.models.coupling import AffineCoupling


@pytest.fixture
def coupling() -> AffineCoupling:
    torch.manual_seed(0)
    coupling = AffineCoupling(6, num_layers=3)
    for parameter in coupling.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return coupling


def test_starts_as_the_identity_up_to_the_order_of_halves() -> None:
    x = torch.randn(5, 6)
    assert torch.equal(AffineCoupling(6, num_layers=2)(x), x)


def test_inverse_undoes_forward_and_the_other_way_round(coupling: AffineCoupling) -> None:
    x = torch.randn(200, 6)
    assert (coupling(x) - x).abs().mean() > 0.1
    torch.testing.assert_close(coupling.inverse(coupling(x)), x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(coupling(coupling.inverse(x)), x, rtol=1e-4, atol=1e-4)


def test_log_determinant_equals_autograd_jacobian(coupling: AffineCoupling) -> None:
    for row in torch.randn(5, 6):
        jacobian = torch.autograd.functional.jacobian(lambda x: coupling(x[None])[0], row)
        torch.testing.assert_close(coupling.log_determinant(row[None])[0], torch.linalg.slogdet(jacobian).logabsdet)


def test_inverse_stays_in_float32_under_autocast(coupling: AffineCoupling) -> None:
    x = torch.randn(50, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        back = coupling.inverse(coupling(x))
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)


def test_odd_number_of_features_is_refused() -> None:
    with pytest.raises(ValueError, match="channels=7 must be even"):
        AffineCoupling(7)
