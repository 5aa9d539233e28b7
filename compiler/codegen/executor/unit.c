/* The executor as one file. It knows of a model what program.h declares, so it is compiled once for
 * a target and linked to every model's tables. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "program.h"

#include "cores.c"
#include "threads.c"
#include "executor.c"
#include "ffi.c"
#include "conversions.c"
