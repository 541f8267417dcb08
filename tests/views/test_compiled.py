"""A compiled function goes on without its compiler, where that fails or is left out, and hides no error of its own."""

import pytest
import torch

from hf_geossl.views.compiled import CompiledFunction


def twice(values: torch.Tensor) -> torch.Tensor:
    return 2 * values


def test_a_failing_compiler_is_said_once_and_leaves_the_result(caplog: pytest.LogCaptureFixture) -> None:
    def broken(graph, inputs):
        raise OSError("no\ncompiler")

    compiled = CompiledFunction(twice, "colours", backend=broken)
    with pytest.raises(TypeError, match="values"):  # whatever the compiler makes of it
        compiled()
    assert not compiled.is_plain
    for _ in range(2):
        assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 2.0))
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("hf_geossl")]
    assert compiled.is_plain
    assert line.startswith("colours are not compiled, the compiler failed (BackendCompilerFailed: ")
    assert "OSError: no compiler): the run goes on without" in line


def test_the_compiler_can_be_left_out() -> None:
    called = []
    compiled = CompiledFunction(twice, "colours", backend=lambda graph, inputs: called.append(1) or graph)
    with compiled.left_out():
        assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))
    assert called == []
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))
    assert called == [1]
