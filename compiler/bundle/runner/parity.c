#include "parity.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "npy.h"

/* Slices of fewer values than this do not have a scale of their own. */
#define MIN_SLICE 64

static double from_half(uint16_t bits) {
  int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  double magnitude = ldexp(exponent ? 1024 + mantissa : mantissa, exponent ? exponent - 25 : -24);
  if (exponent == 31) magnitude = mantissa ? NAN : INFINITY;
  return bits >> 15 ? -magnitude : magnitude;
}

static double from_bfloat(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

/* Elements as doubles; large 64-bit integers are rounded. */
static void decode(const edgec_tensor* tensor, const void* data, const double* codes,
                   double* values) {
  const char* dtype = tensor->dtype;
  size_t count = npy_count(tensor);
#define AS(name, type, expression)                       \
  if (!strcmp(dtype, name)) {                            \
    const type* typed = data;                            \
    for (size_t i = 0; i < count; ++i) {                 \
      const type x = typed[i];                           \
      values[i] = expression;                            \
    }                                                    \
    return;                                              \
  }
  AS("float32", float, x)
  AS("float64", double, x)
  AS("float16", uint16_t, from_half(x))
  AS("bfloat16", uint16_t, from_bfloat(x))
  AS("int8", int8_t, x)
  AS("int16", int16_t, x)
  AS("int32", int32_t, x)
  AS("int64", int64_t, (double)x)
  AS("uint16", uint16_t, x)
  AS("uint32", uint32_t, x)
  AS("uint64", uint64_t, (double)x)
#undef AS
  const uint8_t* bytes = data;
  for (size_t i = 0; i < count; ++i) values[i] = codes ? codes[bytes[i]] : bytes[i];
}

static double magnitude(double value) { return isfinite(value) ? fabs(value) : 0; }

/* Magnitude that an error of each element is measured by: the largest one of the smallest slice
 * along any axis that has at least MIN_SLICE values. */
static int find_scale(const edgec_tensor* tensor, const double* expected, double* scale) {
  size_t count = npy_count(tensor), stride = count;
  double largest = 0;
  for (size_t i = 0; i < count; ++i) largest = fmax(largest, magnitude(expected[i]));
  for (size_t i = 0; i < count; ++i) scale[i] = largest;
  for (int32_t axis = 0; axis < tensor->rank && count; ++axis) {
    size_t extent = (size_t)tensor->shape[axis];
    stride /= extent;
    if (extent == 1 || count / extent < MIN_SLICE) continue;
    double* of_slice = calloc(extent, sizeof *of_slice);
    if (!of_slice) return -1;
    for (size_t i = 0; i < count; ++i) {
      double* slice = &of_slice[i / stride % extent];
      *slice = fmax(*slice, magnitude(expected[i]));
    }
    for (size_t i = 0; i < count; ++i) scale[i] = fmin(scale[i], of_slice[i / stride % extent]);
    free(of_slice);
  }
  return 0;
}

static parity_result compare_floats(size_t count, const double* expected, const double* actual,
                                    const double* scale, parity_tolerance tolerance) {
  parity_result result = {0, 0, NULL};
  double power = 0, noise = 0;
  for (size_t i = 0; i < count; ++i) {
    result.problem = isnan(expected[i])  ? "the original model itself gives NaN"
                     : isnan(actual[i]) ? "has NaN"
                                        : NULL;
    if (result.problem) return (parity_result){INFINITY, INFINITY, result.problem};
    /* Equal infinities have no difference. */
    double error = expected[i] == actual[i] ? 0 : fabs(actual[i] - expected[i]);
    double allowed = tolerance.relative * scale[i] + tolerance.absolute;
    result.max_error = fmax(result.max_error, error);
    result.allowed_share = fmax(result.allowed_share, error / allowed);
    noise += error * error;
    if (isfinite(expected[i])) power += expected[i] * expected[i];
  }
  double sqnr_db = noise < INFINITY ? 10 * log10(power / noise) : -INFINITY;
  if (result.allowed_share > 1 && sqnr_db >= tolerance.sqnr_db)
    result.allowed_share = pow(10, (tolerance.sqnr_db - sqnr_db) / 20);
  else if (result.allowed_share > 1)
    result.problem = "the error is larger than allowed";
  return result;
}

static parity_result compare_exactly(const edgec_tensor* tensor, const void* expected,
                                     const void* actual, const double* wide_expected,
                                     const double* wide_actual, int coded) {
  parity_result result = {0, 0, NULL};
  size_t count = npy_count(tensor), width = count ? tensor->bytes / count : 1;
  for (size_t i = 0; i < count; ++i) {
    /* Codes of the same value may differ; integers of 64 bits are compared as such. */
    int same = coded ? wide_expected[i] == wide_actual[i]
                     : !memcmp((const char*)expected + i * width, (const char*)actual + i * width,
                               width);
    if (same) continue;
    result.problem = "values differ that must be equal";
    result.allowed_share = 2;
    result.max_error = fmax(result.max_error, fabs(wide_actual[i] - wide_expected[i]));
  }
  return result;
}

parity_result parity_compare(const edgec_tensor* tensor, const void* expected, const void* actual,
                             const double* codes, parity_tolerance tolerance) {
  size_t count = npy_count(tensor);
  parity_result result = {INFINITY, INFINITY, "there is no memory for the comparison"};
  double* values = calloc(count ? 3 * count : 1, sizeof *values);
  if (!values) return result;
  double *wide_expected = values, *wide_actual = values + count, *scale = values + 2 * count;
  decode(tensor, expected, codes, wide_expected);
  decode(tensor, actual, codes, wide_actual);
  if (!strstr(tensor->dtype, "float"))
    result = compare_exactly(tensor, expected, actual, wide_expected, wide_actual, codes != NULL);
  else if (!find_scale(tensor, wide_expected, scale))
    result = compare_floats(count, wide_expected, wide_actual, scale, tolerance);
  free(values);
  return result;
}
