/* Run the variants of the bundle so that deadlines are met. */
#ifndef EDGEC_GOVERN_H
#define EDGEC_GOVERN_H

#include <stddef.h>

#include "edgec.h"

enum { GOVERN_MESSAGE = 512 };

typedef struct {
  const edgec_model* code;
  edgec_session* session;
  const char* bundle; /* folder */
  const void* const* const* inputs; /* of each program */
  void* const* const* outputs;
  const int* failed; /* programs that are not to be chosen; NULL if all may be */
  double deadline_ms, period_ms; /* period: from the begin of one run to the next; 0: at once */
  const char *sys, *proc; /* folders of signals */
} governed;

/* Measure the options and keep them for this machine; print what they are, as a JSON member. 0, else
 * `message` says why not. */
int govern_install(const governed* model, char message[GOVERN_MESSAGE]);

/* Run so often; print what came of it, as JSON members. The program that ran last, or -1 and
 * `message` says why not. */
int32_t govern_run(const governed* model, int32_t repeat, char message[GOVERN_MESSAGE]);

#endif
