/* Choose a variant of a model and its threads before each inference, so that deadlines are met.
 *
 *     edgec_governor_settings settings = {.deadline_ms = 20};
 *     edgec_governor* governor = edgec_governor_open(options, count, &settings);
 *     for (;;) {
 *       const edgec_option* option = &options[edgec_governor_choose(governor, now_ms)];
 *       model->use_threads(session, option->threads);
 *       model->run_program(session, option->program, inputs, outputs, NULL);
 *       edgec_governor_observe(governor, now_ms, latency_ms);
 *     }
 *
 * Nothing here reads a clock: times are handed in, in milliseconds of any clock that never goes
 * back. Only the functions called `open` allocate. A governor belongs to one thread at a time. */
#ifndef EDGEC_GOVERNOR_H
#define EDGEC_GOVERNOR_H

#include <stddef.h>
#include <stdint.h>

#include "edgec.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What can be chosen. */
typedef struct {
  int32_t program; /* of the model: a variant */
  int32_t threads;
  double accuracy;   /* 0 to 1 */
  double latency_ms; /* of one inference on this machine while nothing else ran */
} edgec_option;

/* What the machine says of itself. */
typedef struct {
  double to_trip; /* kelvins from the hottest zone to where it throttles; negative above */
  double clock;   /* the present clock as a share of the highest; 1 if nobody says */
  double busy_cores; /* that other processes keep busy */
  double battery;    /* 0 to 1 while it is what the machine runs on; 1 otherwise */
} edgec_signals;

/* After a switch: the options before and now, by their numbers; -1 before the first. */
typedef void (*edgec_on_switch)(void* context, int32_t before, int32_t now);

/* Zeros stand for what is said in parentheses. */
typedef struct {
  double deadline_ms;    /* of one inference */
  double miss_share;     /* of the deadlines that may be missed (0.01) */
  double accuracy_floor; /* options below it serve only where no other meets the deadline (0) */
  double low_battery;    /* below it the option of least work is taken (0.2) */
  int32_t cores;         /* that this process may use (1) */
  edgec_on_switch on_switch;
  void* context; /* of on_switch */
} edgec_governor_settings;

typedef struct {
  int64_t inferences, misses, switches;
  double accuracy; /* mean of the options that ran */
  double slowdown; /* of an inference at present, beside its `latency_ms` */
} edgec_governor_report;

typedef struct edgec_governor edgec_governor;

/* A governor of so many options, which it copies; NULL without memory, options or a deadline. */
edgec_governor* edgec_governor_open(const edgec_option* options, int32_t count,
                                    const edgec_governor_settings* settings);
void edgec_governor_close(edgec_governor* governor);

/* The number of the option for the next inference. Calls on_switch if it is another one. */
int32_t edgec_governor_choose(edgec_governor* governor, double now_ms);

/* Note how long the inference took that was run by the option chosen last. */
void edgec_governor_observe(edgec_governor* governor, double now_ms, double latency_ms);

/* Note what the machine says: as often as it pleases, ten times a second is enough. */
void edgec_governor_note(edgec_governor* governor, double now_ms, const edgec_signals* signals);

/* The latency that this option keeps but for the share of misses, as far as is known now. */
double edgec_governor_expected_ms(const edgec_governor* governor, int32_t option);

edgec_governor_report edgec_governor_reported(const edgec_governor* governor);

/* Signals of Linux. `sys` and `proc` are /sys and /proc, or folders that look like them. Files are
 * opened once and read again each time; those that are not there say nothing. */
typedef struct edgec_signal_files edgec_signal_files;
edgec_signal_files* edgec_signals_open(const char* sys, const char* proc);
void edgec_signals_close(edgec_signal_files* files);
edgec_signals edgec_signals_read(edgec_signal_files* files);

/* Measure the options of a model on this machine: each program on 1, 2, 4, … threads and on all that
 * the session has, in turns, so that what else happens hits them alike. Inputs and outputs are those
 * of each program; `accuracies` too. How many options were written, at most `most`; -1 if a run
 * fails, see `error` of the model. */
int32_t edgec_race(const edgec_model* model, edgec_session* session,
                   const void* const* const* inputs, void* const* const* outputs,
                   const double* accuracies, edgec_option* options, int32_t most);

/* Options as a text file, one line each: "option PROGRAM THREADS ACCURACY LATENCY_MS", after a line
 * "machine NAME" and one "model DIGEST". */

/* How many options were read, at most `most`; 0 if there is no such file, or it is of another
 * machine or model, or damaged. */
int32_t edgec_options_read(const char* path, const char* model, edgec_option* options,
                           int32_t most);

/* Write the file whole or not at all; 0, or -1 if it cannot be written. */
int edgec_options_write(const char* path, const char* model, const edgec_option* options,
                        int32_t count);

#ifdef __cplusplus
}
#endif

#endif
