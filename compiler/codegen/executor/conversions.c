/* Conversions between floats and 64-bit integers by the names that LLVM calls on 32-bit Arm. The
 * Arm ABI names them __aeabi_l2f and so on and passes floats in integer registers; libraries of
 * compilers need not have others. The C compiler calls those. */
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
