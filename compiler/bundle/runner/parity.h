/* Is an output within its tolerance of what the original model gives? The same rule as that of
 * `edgec verify`. */
#ifndef PARITY_H
#define PARITY_H

#include "edgec.h"

typedef struct {
  double relative, absolute; /* allowed error = relative * scale + absolute */
  double sqnr_db;            /* signal-to-noise ratio that is enough as well, INFINITY if none is */
} parity_tolerance;

typedef struct {
  double max_error;     /* largest |actual - expected| */
  double allowed_share; /* largest error as a share of what is allowed there */
  const char* problem;  /* why it fails, or NULL */
} parity_result;

/* `codes` are the values of the 256 bytes where a tensor's dtype is a code of 8 bits or fewer,
 * else NULL. */
parity_result parity_compare(const edgec_tensor* tensor, const void* expected, const void* actual,
                             const double* codes, parity_tolerance tolerance);

#endif
