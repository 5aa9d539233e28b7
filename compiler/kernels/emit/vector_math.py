"""Provide exp, tanh, sigmoid and erf as straight-line vector code.

A call of the C library computes one element; these compute a register. The bounds below are the
largest relative errors over all finite float32 inputs, in units of 2**-23;
`tests/compiler/kernels/emit/test_vector_math.py` measures them against float64.

    exp       2      Cody and Waite reduction, Taylor-like polynomial of degree 6
    sigmoid   4      1 / (1 + exp(-x))
    tanh      4      odd polynomial below 0.55, 1 - 2 / (exp(2 x) + 1) above
    erf       3      x P(x^2) below 1, 1 - exp(-Q(x)) above

NaN gives NaN, infinities give the limit. exp of less than -87.33 gives 0, not a denormal number.
The coefficients of tanh and erf are Chebyshev fits made for this file.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.vectors import constant, lanes_of, select, vector_dtype

# x = n ln 2 + r; the high part has few bits, so that n times it is exact.
_LOG2_E = 1.44269504088896341
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_EXP_MIN, _EXP_MAX = -87.33, 88.72283
# (exp(r) - 1 - r) / r^2 for |r| <= ln 2 / 2, highest power first (Cephes, expf).
_EXP = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
# erf(x) / x in x^2, for |x| <= 1.
_ERF_SMALL = (
    8.007055294001475e-05,
    -0.0008053798810578883,
    0.005192962475121021,
    -0.02685607224702835,
    0.11283634603023529,
    -0.3761262893676758,
    1.128379225730896,
)
# -log(1 - erf(x)), for 1 <= x <= 4.
_ERF_LARGE = (
    -1.6264201576632331e-06,
    4.581897155730985e-05,
    -0.0005945528391748667,
    0.004747880157083273,
    -0.02638440765440464,
    0.11000911891460419,
    0.6319084167480469,
    1.1301809549331665,
    -0.0003060997405555099,
)
# tanh(x) / x in x^2, for |x| <= 0.55.
_TANH_SMALL = (
    -0.006332229822874069,
    0.021107254549860954,
    -0.053859081119298935,
    0.1333262026309967,
    -0.33333316445350647,
    1.0,
)
_TANH_SPLIT = 0.55


def _like(value: Any, number: float) -> Any:
    return constant(number, "float32", lanes_of(value))


def _polynomial(x: Any, coefficients: Sequence[float]) -> Any:
    """Return Horner's scheme, highest power first."""
    result = _like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + _like(x, coefficient)
    return result


def exp(x: Any) -> Any:
    """Return E to the x."""
    bounded = tirx.min(tirx.max(x, _like(x, _EXP_MIN)), _like(x, _EXP_MAX))
    n = tirx.nearbyint(bounded * _like(x, _LOG2_E))
    r = bounded - n * _like(x, _LN2_HIGH)
    r = r - n * _like(x, _LN2_LOW)
    p = _polynomial(r, _EXP) * r * r + r + _like(x, 1)
    # Times 2^n: n goes into the exponent bits.
    lanes = lanes_of(x)
    integer = vector_dtype("int32", lanes)
    bits = tirx.reinterpret(integer, p)
    shifted = tirx.Cast(integer, n) * constant(1 << 23, "int32", lanes)
    result = tirx.reinterpret(vector_dtype("float32", lanes), bits + shifted)
    result = select(x > _like(x, _EXP_MAX), _like(x, float("inf")), result)
    result = select(x < _like(x, _EXP_MIN), _like(x, 0), result)
    return select(tirx.isnan(x), x, result)


def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + exp(-x))."""
    one = _like(x, 1)
    return one / (one + exp(_like(x, 0) - x))


def tanh(x: Any) -> Any:
    """Return hyperbolic tangent."""
    magnitude = tirx.max(x, _like(x, 0) - x)
    small = x * _polynomial(x * x, _TANH_SMALL)
    # exp overflows to infinity, which gives exactly 1.
    tail = _like(x, 1) - _like(x, 2) / (exp(magnitude + magnitude) + _like(x, 1))
    signed = select(x < _like(x, 0), _like(x, 0) - tail, tail)
    return select(magnitude < _like(x, _TANH_SPLIT), small, select(tirx.isnan(x), x, signed))


def erf(x: Any) -> Any:
    """Return error function."""
    magnitude = tirx.max(x, _like(x, 0) - x)
    small = x * _polynomial(x * x, _ERF_SMALL)
    bounded = tirx.min(magnitude, _like(x, 4))
    tail = _like(x, 1) - exp(_like(x, 0) - _polynomial(bounded, _ERF_LARGE))
    signed = select(x < _like(x, 0), _like(x, 0) - tail, tail)
    return select(magnitude < _like(x, 1), small, select(tirx.isnan(x), x, signed))


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "exp": exp,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "erf": erf,
}
"""By the name of the TIR operator that each replaces."""
