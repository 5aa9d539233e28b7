/* See govern.h. The choice itself is made in governor/. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "govern.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "governor.h"
#include "process.h"

enum { MOST_OPTIONS = 256, PATH = 4096, DIGEST = 65 };
#define SIGNALS_MS 100.0

static int refuse(char message[GOVERN_MESSAGE], const char* why, const char* what) {
  snprintf(message, GOVERN_MESSAGE, why, what);
  return -1;
}

/* What tells the bundle from others: the last key of its manifest. */
static int read_digest(const char* bundle, char digest[DIGEST], char message[GOVERN_MESSAGE]) {
  static const char key[] = "\"digest\": \"";
  char path[PATH], end[256];
  snprintf(path, sizeof path, "%s/manifest.json", bundle);
  FILE* file = fopen(path, "r");
  if (!file) return refuse(message, "cannot read %s", path);
  fseek(file, -200, SEEK_END);
  end[fread(end, 1, sizeof end - 1, file)] = 0;
  fclose(file);
  const char* found = strstr(end, key);
  if (!found || sscanf(found + strlen(key), "%64[0-9a-f]", digest) != 1 || strlen(digest) != 64)
    return refuse(message, "%s is damaged", path);
  return 0;
}

/* $XDG_STATE_HOME/edgec or ~/.local/state/edgec, and the file there; makes the folders. */
static int state_file(const char* digest, int make, char path[PATH], char message[GOVERN_MESSAGE]) {
  const char* state = getenv("XDG_STATE_HOME");
  const char* home = getenv("HOME");
  int length;
  if (state && *state)
    length = snprintf(path, PATH, "%s/edgec/%.32s.options", state, digest);
  else
    length = snprintf(path, PATH, "%s/.local/state/edgec/%.32s.options", home ? home : "", digest);
  if (length >= PATH) return refuse(message, "%s is too long a path", "the state folder");
  for (char* slash = path + 1; make && (slash = strchr(slash, '/')); ++slash) {
    *slash = 0;
    const int failed = mkdir(path, 0777) && errno != EEXIST;
    if (failed) return refuse(message, "cannot make %s; set XDG_STATE_HOME to a folder", path);
    *slash = '/';
  }
  return 0;
}

static double* read_accuracies(const governed* model, char message[GOVERN_MESSAGE]) {
  char path[PATH];
  snprintf(path, sizeof path, "%s/variants.txt", model->bundle);
  FILE* file = fopen(path, "r");
  if (!file) {
    refuse(message, "%s has no variants to choose among; compile it with --variant", model->bundle);
    return NULL;
  }
  const int32_t count = model->code->program_count;
  double* accuracies = calloc((size_t)count, sizeof *accuracies);
  int32_t read = 0;
  while (accuracies && read < count && fscanf(file, " variant %lf", &accuracies[read]) == 1) ++read;
  fclose(file);
  if (read == count) return accuracies;
  free(accuracies);
  refuse(message, "%s is damaged", path);
  return NULL;
}

static int32_t measure(const governed* model, edgec_option* options, char message[GOVERN_MESSAGE]) {
  double* accuracies = read_accuracies(model, message);
  if (!accuracies) return -1;
  const int32_t count = edgec_race(model->code, model->session, model->inputs, model->outputs,
                                   accuracies, options, MOST_OPTIONS);
  free(accuracies);
  if (count < 0) return refuse(message, "a variant failed: %s", model->code->error(model->session));
  int32_t kept = 0;
  for (int32_t i = 0; i < count; ++i)
    if (!model->failed || !model->failed[options[i].program]) options[kept++] = options[i];
  return kept;
}

static const char* name_of(const governed* model, const edgec_option* option) {
  return model->code->programs[option->program].name; /* letters, digits, dots and dashes */
}

int govern_install(const governed* model, char message[GOVERN_MESSAGE]) {
  edgec_option options[MOST_OPTIONS];
  char digest[DIGEST], path[PATH];
  const int32_t count = measure(model, options, message);
  if (count < 0 || read_digest(model->bundle, digest, message)) return -1;
  if (!count) return refuse(message, "%s", "no variant computes what it should");
  if (state_file(digest, 1, path, message)) return -1;
  if (edgec_options_write(path, digest, options, count))
    return refuse(message, "cannot write %s; set XDG_STATE_HOME to a folder that can be", path);
  printf(",\n \"installed\": [");
  for (int32_t i = 0; i < count; ++i)
    printf("%s\n  {\"variant\": \"%s\", \"threads\": %d, \"accuracy\": %.6g, \"median_ms\": %.6g}",
           i ? "," : "", name_of(model, &options[i]), options[i].threads, options[i].accuracy,
           options[i].latency_ms);
  printf("]");
  return 0;
}

static void sleep_until(double ms) {
  const double left = ms - now_ms();
  if (left <= 0) return;
  const struct timespec time = {(time_t)(left / 1e3), (long)(left * 1e6) % 1000000000};
  nanosleep(&time, NULL);
}

int32_t govern_run(const governed* model, int32_t repeat, char message[GOVERN_MESSAGE]) {
  edgec_option options[MOST_OPTIONS];
  char digest[DIGEST], path[PATH];
  if (read_digest(model->bundle, digest, message) || state_file(digest, 0, path, message)) return -1;
  const int32_t threads = model->code->threads(model->session);
  int32_t count = edgec_options_read(path, digest, options, MOST_OPTIONS), usable = 0;
  for (int32_t i = 0; i < count; ++i)
    if (options[i].threads <= threads && options[i].program < model->code->program_count)
      options[usable++] = options[i];
  const int installed = usable > 0;
  count = installed ? usable : measure(model, options, message);
  if (count < 0) return -1;
  const edgec_governor_settings settings = {.deadline_ms = model->deadline_ms, .cores = threads};
  edgec_governor* governor = edgec_governor_open(options, count, &settings);
  edgec_signal_files* signals = edgec_signals_open(model->sys, model->proc);
  int64_t* ran = calloc((size_t)model->code->program_count, sizeof *ran);
  const edgec_option* option = NULL;
  int32_t failed = !governor || !signals || !ran;
  if (failed) refuse(message, "no memory for %s", "a governor");
  double noted = 0, began = now_ms();
  for (int32_t i = 0; !failed && i < repeat; ++i) {
    sleep_until(i ? began + model->period_ms : 0);
    began = now_ms();
    if (began - noted >= SIGNALS_MS) {
      const edgec_signals now = edgec_signals_read(signals);
      edgec_governor_note(governor, began, &now);
      noted = began;
    }
    option = &options[edgec_governor_choose(governor, began)];
    model->code->use_threads(model->session, option->threads);
    failed = model->code->run_program(model->session, option->program,
                                      model->inputs[option->program],
                                      model->outputs[option->program], NULL);
    if (failed) refuse(message, "%s", model->code->error(model->session));
    const double ended = now_ms();
    edgec_governor_observe(governor, ended, ended - began);
    ++ran[option->program];
  }
  if (!failed) {
    const edgec_governor_report report = edgec_governor_reported(governor);
    printf(",\n \"deadline_ms\": %.6g, \"misses\": %lld, \"switches\": %lld, \"accuracy\": %.6g,\n"
           " \"measured\": \"%s\", \"variants\": {",
           model->deadline_ms, (long long)report.misses, (long long)report.switches,
           report.accuracy, installed ? "at installation" : "now");
    for (int32_t p = 0; p < model->code->program_count; ++p)
      printf("%s\"%s\": %lld", p ? ", " : "", model->code->programs[p].name, (long long)ran[p]);
    printf("}");
  }
  free(ran);
  edgec_signals_close(signals);
  edgec_governor_close(governor);
  return failed ? -1 : option->program;
}
