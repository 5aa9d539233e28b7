"""Provide functions of one value as straight-line vector code.

A call of the C library computes one element; these compute a register. The bounds below are the
largest relative errors over all finite float32 inputs, in units of 2**-23;
`tests/compiler/kernels/emit/test_vector_math.py` measures them against float64.

    exp       2      Cody and Waite reduction, Taylor-like polynomial of degree 6
    sigmoid   4      1 / (1 + exp(-x))
    tanh      4      odd polynomial below 0.55, 1 - 2 / (exp(2 x) + 1) above
    erf       3      x P(x^2) below 1, 1 - exp(-Q(x)) above
    sin, cos  2      reduced by multiples of pi / 2 in float64: beyond 2^30 the error grows with x
    atan      3      by tan(x - y), Cephes
    asin      3      by the half of the angle above 0.5, Cephes; acos likewise
    sinh      3      Taylor below 1, by exp above; cosh by exp

NaN gives NaN, infinities give the limit. exp of less than -87.33 gives 0, not a denormal number.
The coefficients of tanh and erf are Chebyshev fits made for this file.
"""

import math
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
# 2^x for |x| <= 0.5, highest power first: least squares of the relative error, made for this file.
_EXP2 = (
    0.00015370704817,
    0.0013399848291,
    0.0096183732514,
    0.055503290352,
    0.24022648462,
    0.69314720558,
    1.0,
)
_EXP2_MIN, _EXPONENT_BIAS = -126, 127
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
# (sin(x) - x) / x^3 and (cos(x) - 1 + x^2 / 2) / x^4 in x^2, for |x| <= pi / 4 (Cephes, sinf).
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
# (atan(x) - x) / x^3 in x^2, for |x| <= tan(pi / 8) (Cephes, atanf).
_ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
# (asin(x) - x) / x^3 in x^2, for |x| <= 0.5 (Cephes, asinf).
_ASIN = (
    4.2163199048e-2,
    2.4181311049e-2,
    4.5470025998e-2,
    7.4953002686e-2,
    1.6666752422e-1,
)
# (sinh(x) - x) / x^3 in x^2, for |x| <= 1.
_SINH = (1 / 39916800, 1 / 362880, 1 / 5040, 1 / 120, 1 / 6)

_BITS_OF_2_23 = 0x4B000000


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
    # A number as the first operand lets NaN pass.
    bounded = tirx.min(_like(x, _EXP_MAX), x)
    return select(x > _like(x, _EXP_MAX), _like(x, float("inf")), exp_below(x, bounded))


def exp_below(x: Any, bounded: Any = None) -> Any:
    """Return E to the x where x is not above 88.72: in softmax it is never above 0.

    Args:
        x: the exponent.
        bounded: what is computed in its place above -87.33.
    """
    bounded = tirx.max(_like(x, _EXP_MIN), x if bounded is None else bounded)
    n = tirx.nearbyint(bounded * _like(x, _LOG2_E))
    r = bounded - n * _like(x, _LN2_HIGH)
    r = r - n * _like(x, _LN2_LOW)
    p = _polynomial(r, (*_EXP, 1, 1))
    # Times 2^n: n goes into the exponent bits.
    lanes = lanes_of(x)
    integer = vector_dtype("int32", lanes)
    raised = tirx.Cast(integer, n) * constant(1 << 23, "int32", lanes)
    floats = vector_dtype("float32", lanes)
    result = tirx.reinterpret(floats, tirx.reinterpret(integer, p) + raised)
    # NaN is not above it either, and stays.
    return select(x >= _like(x, _EXP_MIN), result, tirx.max(_like(x, 0), x))


def exp2_below_zero(x: Any) -> Any:
    """Return 2 to the x, which is 0 or less; 0 for less than -126. The error is at most 2."""
    lanes = lanes_of(x)
    n = tirx.nearbyint(tirx.max(x, _like(x, _EXP2_MIN - 1)))
    exponent = tirx.Cast(vector_dtype("int32", lanes), n)
    bits = (exponent + constant(_EXPONENT_BIAS, "int32", lanes)) * constant(1 << 23, "int32", lanes)
    # A product, so that not a number stays that.
    power = tirx.reinterpret(vector_dtype("float32", lanes), bits)
    result = _polynomial(x - n, _EXP2) * power
    return select(x < _like(x, _EXP2_MIN), _like(x, 0), result)


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


def _quarter_turns(x: Any) -> tuple[Any, Any]:
    """Return an angle less quarter turns, of at most pi / 4, and the quarter turns modulo 4."""
    lanes = lanes_of(x)
    double, integer = vector_dtype("float64", lanes), vector_dtype("int64", lanes)
    angle = tirx.Cast(double, x)
    turns = tirx.nearbyint(angle * constant(2 / math.pi, "float64", lanes))
    rest = angle - turns * constant(math.pi / 2, "float64", lanes)
    # What is beyond is too large to have an angle; infinities give NaN.
    bound = constant(1.0, "float64", lanes)
    rest = tirx.min(tirx.max(rest, constant(-1.0, "float64", lanes)), bound)
    rest = tirx.Cast(vector_dtype("float32", lanes), rest) + (x - x)
    large = constant(2.0**52, "float64", lanes)
    kept = select(tirx.abs(turns) < large, turns, constant(0.0, "float64", lanes))
    quarter = tirx.bitwise_and(tirx.Cast(integer, kept), constant(3, "int64", lanes))
    return rest, tirx.Cast(vector_dtype("int32", lanes), quarter)


def _sine(x: Any, ahead: int) -> Any:
    """Return the sine of an angle that is some quarter turns ahead."""
    lanes = lanes_of(x)
    rest, turns = _quarter_turns(x)
    turns = turns + constant(ahead, "int32", lanes)
    square = rest * rest
    sine = rest + rest * square * _polynomial(square, _SIN)
    cosine = _like(x, 1) - _like(x, 0.5) * square + square * square * _polynomial(square, _COS)
    odd = tirx.bitwise_and(turns, constant(1, "int32", lanes))
    value = select(odd.equal(constant(1, "int32", lanes)), cosine, sine)
    half = tirx.bitwise_and(turns, constant(2, "int32", lanes))
    return select(half.equal(constant(2, "int32", lanes)), _like(x, 0) - value, value)


def sin(x: Any) -> Any:
    """Return sine."""
    return _sine(x, 0)


def cos(x: Any) -> Any:
    """Return cosine."""
    return _sine(x, 1)


def atan(x: Any) -> Any:
    """Return arc tangent."""
    one = _like(x, 1)
    magnitude = tirx.max(x, _like(x, 0) - x)
    high = magnitude > _like(x, 1 + math.sqrt(2))
    middle = magnitude > _like(x, math.sqrt(2) - 1)
    closer = select(middle, (magnitude - one) / (magnitude + one), magnitude)
    closer = select(high, _like(x, -1) / magnitude, closer)
    first = select(middle, _like(x, math.pi / 4), _like(x, 0))
    first = select(high, _like(x, math.pi / 2), first)
    square = closer * closer
    angle = first + (closer + closer * square * _polynomial(square, _ATAN))
    signed = select(x < _like(x, 0), _like(x, 0) - angle, angle)
    return select(tirx.isnan(x), x, signed)


def _arc(small: Any) -> Any:
    """Return arc sine of at most 0.5."""
    square = small * small
    return small + small * square * _polynomial(square, _ASIN)


def asin(x: Any) -> Any:
    """Return arc sine."""
    magnitude = tirx.abs(x)
    half = tirx.sqrt(_like(x, 0.5) - _like(x, 0.5) * magnitude)
    above = _like(x, math.pi / 2) - _like(x, 2) * _arc(half)
    angle = select(magnitude > _like(x, 0.5), above, _arc(magnitude))
    signed = select(x < _like(x, 0), _like(x, 0) - angle, angle)
    return select(tirx.isnan(x), x, signed)


def acos(x: Any) -> Any:
    """Return arc cosine."""
    half = tirx.sqrt(_like(x, 0.5) - _like(x, 0.5) * tirx.abs(x))
    outer = _like(x, 2) * _arc(half)
    angle = select(x < _like(x, 0), _like(x, math.pi) - outer, outer)
    inner = _like(x, math.pi / 2) - _arc(x)
    return select(tirx.abs(x) > _like(x, 0.5), angle, select(tirx.isnan(x), x, inner))


def cosh(x: Any) -> Any:
    """Return hyperbolic cosine."""
    root = exp(_like(x, 0.5) * tirx.abs(x))
    return _like(x, 0.5) * root * root + _like(x, 0.5) / root / root


def sinh(x: Any) -> Any:
    """Return hyperbolic sine."""
    magnitude, square = tirx.abs(x), x * x
    root = exp(_like(x, 0.5) * magnitude)
    above = _like(x, 0.5) * root * root - _like(x, 0.5) / root / root
    signed = select(x < _like(x, 0), _like(x, 0) - above, above)
    small = x + x * square * _polynomial(square, _SINH)
    return select(magnitude < _like(x, 1), small, signed)


def round_even(x: Any) -> Any:
    """Return the nearest whole number, ties to even.

    Floats of 2**23 and more are whole; the sum of smaller ones and it has the whole number in its
    last bits. (A simplifier would cancel a difference of floats.)
    """
    lanes = lanes_of(x)
    integer = vector_dtype("int32", lanes)
    magnitude, whole = tirx.abs(x), _like(x, 2.0**23)
    bits = tirx.reinterpret(integer, magnitude + whole) - constant(_BITS_OF_2_23, "int32", lanes)
    rounded = tirx.Cast(vector_dtype("float32", lanes), bits)
    signed = select(x < _like(x, 0), _like(x, 0) - rounded, rounded)
    return select(magnitude < whole, signed, x)


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "exp": exp,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "erf": erf,
    "acos": acos,
    "asin": asin,
    "atan": atan,
    "cos": cos,
    "cosh": cosh,
    "nearbyint": round_even,
    "round": round_even,
    "sin": sin,
    "sinh": sinh,
}
"""By the name of the TIR operator that each replaces."""
