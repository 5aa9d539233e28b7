/* Conversions by the names that LLVM calls where a processor has no instruction for them. Between
 * floats and 64-bit integers the ABI of 32-bit Arm names them __aeabi_l2f and so on and passes
 * floats in integer registers; libraries of compilers need not have others. The C compiler calls
 * those. */
#ifdef __arm__

#define EDGEC_CONVERSION(name, from, to) \
  __attribute__((visibility("hidden"))) to name(from value) { return (to)value; }

EDGEC_CONVERSION(__floatdisf, long long, float)
EDGEC_CONVERSION(__floatdidf, long long, double)
EDGEC_CONVERSION(__floatundisf, unsigned long long, float)
EDGEC_CONVERSION(__floatundidf, unsigned long long, double)
EDGEC_CONVERSION(__fixsfdi, float, long long)
EDGEC_CONVERSION(__fixdfdi, double, long long)
EDGEC_CONVERSION(__fixunssfdi, float, unsigned long long)
EDGEC_CONVERSION(__fixunsdfdi, double, unsigned long long)

#endif

#if defined __arm__ || defined __riscv

#include <stdint.h>
#include <string.h>

/* To the nearest, ties to even. */
static uint16_t half_of(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  uint16_t sign = (uint16_t)(bits >> 48) & 0x8000;
  int exponent = (int)(bits >> 52 & 0x7ff) - 1023 + 15;
  uint64_t fraction = bits & (((uint64_t)1 << 52) - 1);
  if (exponent == 0x7ff - 1023 + 15) return (uint16_t)(sign | 0x7c00 | (fraction ? 0x200 : 0));
  if (exponent >= 31) return sign | 0x7c00;
  if (exponent < -10) return sign;
  int dropped = 52 - 10;
  uint64_t kept = (uint64_t)(exponent > 0 ? exponent : 0) << 52 | fraction;
  if (exponent <= 0) {
    kept |= (uint64_t)1 << 52;
    dropped += 1 - exponent;
  }
  uint64_t rest = kept & (((uint64_t)1 << dropped) - 1), half = (uint64_t)1 << (dropped - 1);
  kept >>= dropped;
  /* A carry out of the fraction goes into the exponent, as it should. */
  if (rest > half || (rest == half && (kept & 1))) kept++;
  return (uint16_t)(sign | kept);
}

#endif

#ifdef __arm__

/* LLVM passes the double in integer registers, where the libraries of some compilers (zig's) expect
 * it in one for floats. */
__attribute__((visibility("hidden"), pcs("aapcs"))) uint16_t __truncdfhf2(double value) {
  return half_of(value);
}

#endif

#ifdef __riscv

/* LLVM wants the half in a register for floats, where TVM's own gives it in one for integers. */
__attribute__((visibility("hidden"))) _Float16 __truncsfhf2(float value) {
  uint16_t bits = half_of(value);
  _Float16 half;
  memcpy(&half, &bits, sizeof half);
  return half;
}

#endif
