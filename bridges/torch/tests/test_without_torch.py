"""What needs no PyTorch: the native module on memory of Python's arrays."""

import subprocess
import sys
from array import array

import pytest
from lora_kernels import _native


def address(values: array) -> int:
    return values.buffer_info()[0]


def at(*arrays: array) -> list[int]:
    return [address(one) for one in arrays]


def matrix(rows: int, cols: int, seed: int) -> array:
    """Small integers, so that no sum rounds."""
    return array("f", [(seed + 7 * i) % 5 - 2 for i in range(rows * cols)])


def times(a: array, b: array, rows: int, inner: int, cols: int, *, b_t: bool) -> list[float]:
    """A B, or A Bᵀ."""
    at = (lambda i, j: b[j * inner + i]) if b_t else (lambda i, j: b[i * cols + j])
    return [
        sum(a[row * inner + i] * at(i, col) for i in range(inner))
        for row in range(rows)
        for col in range(cols)
    ]


def transposed(a: array, rows: int, cols: int) -> list[float]:
    return [a[row * cols + col] for col in range(cols) for row in range(rows)]


def test_it_imports_without_torch():
    """Also where PyTorch is installed: it is imported by what needs it."""
    code = "import sys, lora_kernels; print(lora_kernels.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [_native.__version__, "False"]


def test_both_passes():
    t, k, d, r, scale = 3, 8, 4, 2, 2.0
    x, w0, a, b = matrix(t, k, 0), matrix(d, k, 1), matrix(r, k, 2), matrix(d, r, 3)
    plan = _native.Plan(-1, t, k, [(d, r)], "f32", False, 0.0)
    assert (plan.rank, plan.operands) == (r, 0)
    h, s = array("f", [float("nan")] * t * d), array("f", [float("nan")] * t * r)
    plan.forward(0, at(x, w0, a, b, h), [scale], address(a), address(s), 0, 0, 0)
    want_s = [scale * one for one in times(x, a, t, k, r, b_t=True)]
    low_rank = times(array("f", want_s), b, t, r, d, b_t=True)
    want_h = [one + two for one, two in zip(times(x, w0, t, k, d, b_t=True), low_rank, strict=True)]
    assert (list(h), list(s)) == (want_h, want_s)

    dh = matrix(t, d, 4)
    dx, da, db = (array("f", [float("nan")] * n) for n in (t * k, r * k, d * r))
    plan.backward(0, at(x, s, a, w0, b, dh, da, db), [scale], address(dx), 0, 0, 0)
    ds = array("f", [scale * one for one in times(dh, b, t, d, r, b_t=False)])
    low_rank = times(ds, a, t, r, k, b_t=False)
    want_dx = [
        one + two for one, two in zip(times(dh, w0, t, d, k, b_t=False), low_rank, strict=True)
    ]
    assert list(dx) == want_dx
    assert list(da) == times(array("f", transposed(ds, t, r)), x, r, t, k, b_t=False)
    assert list(db) == times(array("f", transposed(dh, t, d)), s, d, t, r, b_t=False)


def test_masters_are_rounded():
    """f32 A and B beside bf16 x: the operands are bf16, A and each B at a multiple of 8."""
    t, k, sizes = 2, 4, [(3, 1), (2, 1)]
    plan = _native.Plan(-1, t, k, sizes, "bf16", True, 0.0)
    assert plan.operands == 8 + 8 + 2
    bits = {0.0: 0x0000, 1.0: 0x3F80, 2.0: 0x4000, 3.0: 0x4040}
    x = array("H", [bits[1.0]] * t * k)
    w0 = [array("H", [bits[0.0]] * d * k) for d, _ in sizes]
    # 1 + 2⁻⁹ is 1 in bf16.
    a = [array("f", [1 + 2**-9] * k), array("f", [2.0] * k)]
    b = [array("f", [1.0] * 3), array("f", [3.0] * 2)]
    operands, s = array("H", [0xFFFF] * plan.operands), array("H", [0] * t * 2)
    h = [array("H", [0] * t * d) for d, _ in sizes]
    plan.forward(
        0, at(x, *w0, *a, *b, *h), [0.25, 0.125], address(operands), address(s), 0, 0, 0
    )  # fmt: skip
    assert list(operands[:8]) == [bits[1.0]] * 4 + [bits[2.0]] * 4
    assert list(operands[8:11]) == [bits[1.0]] * 3
    assert list(operands[16:]) == [bits[3.0]] * 2
    assert list(s) == [bits[1.0]] * 4
    assert (list(h[0]), list(h[1])) == ([bits[1.0]] * 6, [bits[3.0]] * 4)


def test_errors_have_types_and_numbers():
    with pytest.raises(ValueError, match=r"rank 300 is outside 1\.\.=256 .*T=2 k=4"):
        _native.Plan(-1, 2, 4, [(3, 300)], "f32", False, 0.0)
    with pytest.raises(ValueError, match=r"\"f64\" is not an element type"):
        _native.Plan(-1, 2, 4, [(3, 1)], "f64", False, 0.0)
    with pytest.raises(ValueError, match="1 to 4"):
        _native.Plan(-1, 2, 4, [(3, 1)] * 5, "f32", False, 0.0)
    plan = _native.Plan(-1, 2, 4, [(3, 1)], "f32", False, 0.0)
    with pytest.raises(ValueError, match="scales is a list of 0, expected 1"):
        plan.forward(0, [8] * 5, [], 8, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="a list of 4 addresses, expected 5"):
        plan.forward(0, [8] * 4, [1.0], 8, 0, 0, 0, 0)
    with pytest.raises(ValueError, match=r"0x0 is not aligned for f32"):
        plan.forward(0, [0, 8, 8, 8, 8], [1.0], 8, 0, 0, 0, 0)


def test_a_device_that_is_not_there_is_an_error():
    reason = _native.missing(999)
    assert reason and "CUDA" in reason
    with pytest.raises(RuntimeError, match="CUDA"):
        _native.Plan(999, 2, 4, [(3, 1)], "bf16", False, 0.0)


def test_an_empty_batch():
    plan = _native.Plan(-1, 0, 4, [(3, 1)], "f32", False, 0.0)
    da, db = array("f", [float("nan")] * 4), array("f", [float("nan")] * 3)
    w0, a, b = matrix(3, 4, 0), matrix(1, 4, 0), matrix(3, 1, 0)
    plan.backward(0, [0, 0, *at(a, w0, b), 0, *at(da, db)], [1.0], 0, 0, 0, 0)
    assert (list(da), list(db)) == ([0.0] * 4, [0.0] * 3)
    assert "T=0" in repr(plan)
