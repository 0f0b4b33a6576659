"""The flags of the comparison with PyTorch; the comparison itself needs PyTorch."""

import pytest

from ivt_jax.benchmarks import torch_reference


def test_the_sides_that_are_compared():
    assert torch_reference.sides("plain,jax") == ["jax", "plain"]  # the first side writes the weights
    assert torch_reference.sides("jax") == ["jax"]


@pytest.mark.parametrize("given", ["torch", "jax,tensorflow", ""])
def test_mistaken_sides_are_one_line(given, capsys):
    with pytest.raises(SystemExit) as error:
        torch_reference.main([f"--sides={given}"])
    assert error.value.code == 2
    line = f"argument --sides: {given!r} is not jax and some of torch, plain, such as jax,torch"
    assert line in capsys.readouterr().err
