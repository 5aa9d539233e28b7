/* The choice among options.
 *
 * The latency of an option is its own measured latency, times what the signals say (clock, other
 * processes, heat), times a slow-down that is the same for all options and is learned from the
 * latencies just seen: the idea of ALERT (Wan et al., "ALERT: Accurate Learning for Energy and
 * Timeliness", USENIX ATC 2020, section 3.3). Where signals tell the truth the slow-down stays 1
 * and the choice is right at once; where they do not, it learns their error.
 *
 * ALERT takes the slow-down to be normal. Latencies on a busy machine have long tails, so here its
 * quantile is that of the last ratios that were seen. They are forgotten when the ratios move: some
 * in succession lie outside of what was usual. */
#include "governor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
  WINDOW = 512,    /* ratios that are remembered */
  SETTLED = 20,    /* how many are enough to overlook the largest, */
  ENOUGH = 50,     /* and to try a slower option */
  RISES = 2,       /* ratios in succession that tell of a change */
  FALLS = 8,
  AFTER_SWITCH = 3 /* inferences in which a change is that of the new option */
};
#define MEMORY_MS 10000.0    /* older ratios are forgotten */
#define DWELL_MS 1000.0      /* between two switches when nothing changes */
#define LONGEST_DWELL_MS 64000.0
#define TRIAL_MS 5000.0      /* a more accurate option that is left sooner was a mistake */
#define RELAX_MS 30000.0     /* half of an option's correction is forgotten */
#define SMOOTHING 0.1        /* of mean and deviation of the ratios */
#define UNSETTLED_MARGIN 1.1 /* on the largest ratio while there are few */
#define HEADROOM 1.05        /* that another option must have and the present one need not */
#define BUDGET 0.6           /* of the misses that may be; the rest is for changes */
#define MOST_SAVED 2.0       /* misses that were not used up and may be later */
#define HOT_K 2.0            /* this near to its trip point a machine is about to throttle, */
#define HOT_SLOWDOWN 1.1     /* and this much is expected */

struct edgec_governor {
  edgec_governor_settings settings;
  edgec_signals signals;
  int32_t count, current;
  double switched_ms, noted_ms;
  double changed_ms; /* when signals or missed deadlines last told of a change */
  double dwell_ms; /* before a slower option is tried again */
  int32_t before;  /* the option before the present one */
  double saved;    /* misses */
  int32_t since_switch; /* inferences */
  int has_missed;       /* a deadline since the switch */
  int is_trial;         /* the switch was to a slower option, without need */
  int32_t rises, falls, recent_misses;
  double mean, deviation; /* of the ratios */
  int32_t first, filled;  /* of the window */
  double ratios[WINDOW], times[WINDOW];
  double quantile; /* of the window */
  edgec_governor_report report;
  double* corrections; /* by option: how far off its latency was right after a switch to it */
  edgec_option options[];
};

static double or_default(double value, double otherwise) { return value > 0 ? value : otherwise; }

edgec_governor* edgec_governor_open(const edgec_option* options, int32_t count,
                                    const edgec_governor_settings* settings) {
  if (count < 1 || !(settings->deadline_ms > 0)) return NULL;
  const size_t listed = (size_t)count * sizeof *options;
  edgec_governor* made = calloc(1, sizeof *made + listed + (size_t)count * sizeof(double));
  if (!made) return NULL;
  made->settings = *settings;
  made->settings.miss_share = or_default(settings->miss_share, 0.01);
  made->settings.low_battery = or_default(settings->low_battery, 0.2);
  if (made->settings.cores < 1) made->settings.cores = 1;
  made->signals = (edgec_signals){.to_trip = INFINITY, .clock = 1, .battery = 1};
  made->count = count;
  made->current = made->before = -1;
  made->dwell_ms = DWELL_MS;
  made->switched_ms = made->changed_ms = made->noted_ms = -INFINITY;
  made->mean = 1;
  made->deviation = 0.05;
  made->quantile = UNSETTLED_MARGIN;
  memcpy(made->options, options, listed);
  made->corrections = (double*)(made->options + count);
  for (int32_t i = 0; i < count; ++i) made->corrections[i] = 1;
  return made;
}

void edgec_governor_close(edgec_governor* governor) { free(governor); }

/* How much slower than alone an inference is by what the signals say. `threads` threads get the
 * cores that others leave, or their share among all that compute, if that is more. */
static double signalled(const edgec_governor* governor, int32_t threads) {
  const edgec_signals* now = &governor->signals;
  const double cores = governor->settings.cores, wanted = fmin(threads, cores);
  const double left = cores - now->busy_cores;
  const double share = cores * wanted / (wanted + now->busy_cores);
  const double load = fmax(1, wanted / fmax(left, share));
  const double heat = now->to_trip <= HOT_K ? HOT_SLOWDOWN : 1;
  return load * heat / fmax(now->clock, 0.01);
}

/* The latency of an option whose ratio is 1. */
static double usual_ms(const edgec_governor* governor, int32_t option) {
  const edgec_option* of = &governor->options[option];
  return of->latency_ms * signalled(governor, of->threads) * governor->corrections[option];
}

double edgec_governor_expected_ms(const edgec_governor* governor, int32_t option) {
  return usual_ms(governor, option) * governor->quantile;
}

/* The ratio that only as many of the window exceed as deadlines may be missed. */
static void find_quantile(edgec_governor* governor) {
  const int32_t filled = governor->filled;
  double largest[WINDOW / 16 + 1];
  int32_t kept = 0;
  const double may_miss = 1 + filled * governor->settings.miss_share * BUDGET + governor->saved;
  const int32_t over = filled < SETTLED ? 0 : (int32_t)fmin(may_miss, WINDOW / 16);
  if (!filled) return;
  for (int32_t i = 0; i < filled; ++i) {
    const double ratio = governor->ratios[(governor->first + i) % WINDOW];
    int32_t place = kept;
    if (kept <= over) ++kept;
    else if (ratio > largest[over]) place = over;
    else continue;
    for (; place > 0 && largest[place - 1] < ratio; --place) largest[place] = largest[place - 1];
    largest[place] = ratio;
  }
  governor->quantile = largest[kept - 1] * (filled < SETTLED ? UNSETTLED_MARGIN : 1);
}

static void remember(edgec_governor* governor, double now_ms, double ratio) {
  while (governor->filled == WINDOW ||
         (governor->filled > ENOUGH &&
          now_ms - governor->times[governor->first] > MEMORY_MS)) {
    governor->first = (governor->first + 1) % WINDOW;
    --governor->filled;
  }
  const int32_t place = (governor->first + governor->filled++) % WINDOW;
  governor->ratios[place] = ratio;
  governor->times[place] = now_ms;
}

/* The last ratios are the first of a new time. */
static void forget_all_but(edgec_governor* governor, int32_t last) {
  if (last > governor->filled) last = governor->filled;
  governor->first = (governor->first + governor->filled - last) % WINDOW;
  governor->filled = last;
  double sum = 0;
  for (int32_t i = 0; i < last; ++i) sum += governor->ratios[(governor->first + i) % WINDOW];
  governor->mean = sum / last;
  governor->deviation = 0.05 * governor->mean;
  governor->rises = governor->falls = governor->recent_misses = 0;
}

/* Whether this ratio and those before it say that the machine has changed. */
static int has_changed(edgec_governor* governor, double ratio, int missed) {
  const double mean = governor->mean, usual = 3 * governor->deviation;
  governor->rises = ratio > mean + fmax(usual, 0.2 * mean) ? governor->rises + 1 : 0;
  governor->falls = ratio < mean - fmax(usual, 0.13 * mean) ? governor->falls + 1 : 0;
  governor->recent_misses = (governor->recent_misses << 1 | missed) & 7;
  const int32_t misses = __builtin_popcount((unsigned)governor->recent_misses);
  return governor->rises >= RISES || governor->falls >= FALLS || misses >= RISES;
}

void edgec_governor_observe(edgec_governor* governor, double now_ms, double latency_ms) {
  const int32_t option = governor->current;
  if (option < 0 || !(latency_ms > 0)) return;
  const double deadline = governor->settings.deadline_ms;
  const int missed = latency_ms > deadline;
  const int surprising = missed && edgec_governor_expected_ms(governor, option) <= deadline;
  ++governor->report.inferences;
  governor->report.misses += missed;
  governor->has_missed |= missed;
  governor->saved += governor->settings.miss_share * BUDGET - missed;
  governor->saved = fmax(0, fmin(governor->saved, MOST_SAVED));
  governor->report.accuracy +=
      (governor->options[option].accuracy - governor->report.accuracy) /
      (double)governor->report.inferences;
  double ratio = latency_ms / usual_ms(governor, option);
  const double known = governor->mean;
  remember(governor, now_ms, ratio);
  if (has_changed(governor, ratio, surprising)) {
    const int32_t told = governor->falls >= FALLS ? FALLS : RISES;
    if (governor->is_trial && governor->since_switch < AFTER_SWITCH) {
      /* It is the option that is off, not the machine. */
      governor->corrections[option] *= ratio / known;
      governor->filled -= governor->filled < told ? governor->filled : told;
      governor->rises = governor->falls = governor->recent_misses = 0;
    } else {
      forget_all_but(governor, told);
    }
    /* Latencies that rose within the deadline are no reason for haste. */
    if (governor->has_missed) governor->changed_ms = now_ms;
  } else if (governor->falls < 2) {
    const double most = 3 * governor->deviation;
    const double within = fmax(-most, fmin(most, ratio - known));
    governor->mean += SMOOTHING * within;
    /* A normal value is 0.8 deviations off in the mean. */
    governor->deviation += SMOOTHING * (fabs(within) / 0.8 - governor->deviation);
    governor->deviation = fmax(governor->deviation, 0.01 * governor->mean);
  }
  find_quantile(governor);
  ++governor->since_switch;
}

void edgec_governor_note(edgec_governor* governor, double now_ms, const edgec_signals* signals) {
  const int32_t threads = governor->current < 0 ? 1 : governor->options[governor->current].threads;
  const double before = signalled(governor, threads);
  const int was_low = governor->signals.battery < governor->settings.low_battery;
  governor->signals = *signals;
  const double now = signalled(governor, threads);
  const int is_low = signals->battery < governor->settings.low_battery;
  if (now > 1.1 * before || now < before / 1.1 || was_low != is_low) governor->changed_ms = now_ms;
  if (isfinite(governor->noted_ms)) {
    const double share = exp2(-(now_ms - governor->noted_ms) / RELAX_MS);
    for (int32_t i = 0; i < governor->count; ++i)
      governor->corrections[i] = 1 + (governor->corrections[i] - 1) * share;
  }
  governor->noted_ms = now_ms;
}

/* Core-milliseconds of an inference. */
static double work(const edgec_governor* governor, int32_t option) {
  return usual_ms(governor, option) * governor->options[option].threads;
}

/* Whether one option is better than another, both of which meet the deadline. */
static int is_better(const edgec_governor* governor, int32_t option, int32_t than) {
  const int saves = governor->signals.battery < governor->settings.low_battery;
  const double gain = governor->options[option].accuracy - governor->options[than].accuracy;
  if (gain != 0 && !saves) return gain > 0;
  const double least = than == governor->current ? 0.9 : 1;
  return work(governor, option) < least * work(governor, than);
}

static int32_t best(const edgec_governor* governor) {
  const double deadline = governor->settings.deadline_ms;
  int32_t chosen = -1, fastest = 0;
  /* The present option first, as others have to be better than it. */
  for (int32_t n = -1; n < governor->count; ++n) {
    const int32_t i = n < 0 ? governor->current : n;
    if (i < 0) continue;
    const double headroom = i == governor->current ? 1 : HEADROOM;
    const double expected = edgec_governor_expected_ms(governor, i) * headroom;
    const double most = edgec_governor_expected_ms(governor, fastest);
    if (expected < most || (n < 0 && expected <= most * HEADROOM)) fastest = i;
    if (expected > deadline) continue;
    if (governor->options[i].accuracy < governor->settings.accuracy_floor) continue;
    if (chosen < 0 || is_better(governor, i, chosen)) chosen = i;
  }
  return chosen < 0 ? fastest : chosen;
}

/* Whether the present option may be left now for another one. */
static int may_switch(edgec_governor* governor, int32_t chosen, double now_ms) {
  const int32_t before = governor->current;
  const double rested_ms = now_ms - governor->switched_ms;
  if (before < 0) return 1;
  if (usual_ms(governor, chosen) > usual_ms(governor, before))
    return rested_ms >= governor->dwell_ms && governor->filled >= ENOUGH;
  return rested_ms >= DWELL_MS || governor->changed_ms > governor->switched_ms;
}

/* A slower option that did not last is tried again later and later. */
static void learn_dwell(edgec_governor* governor, int32_t chosen, double now_ms) {
  const int32_t present = governor->current, before = governor->before;
  if (present < 0 || before < 0 || usual_ms(governor, present) <= usual_ms(governor, before)) return;
  const int lasted = now_ms - governor->switched_ms >= TRIAL_MS;
  if (lasted)
    governor->dwell_ms = DWELL_MS;
  else if (usual_ms(governor, chosen) < usual_ms(governor, present))
    governor->dwell_ms = fmin(2 * governor->dwell_ms, LONGEST_DWELL_MS);
}

int32_t edgec_governor_choose(edgec_governor* governor, double now_ms) {
  const int32_t chosen = best(governor), present = governor->current;
  if (chosen == present || !may_switch(governor, chosen, now_ms)) return present;
  learn_dwell(governor, chosen, now_ms);
  governor->is_trial = present >= 0 && usual_ms(governor, chosen) > usual_ms(governor, present);
  governor->before = present;
  governor->current = chosen;
  governor->switched_ms = now_ms;
  governor->since_switch = governor->has_missed = 0;
  ++governor->report.switches;
  if (governor->settings.on_switch)
    governor->settings.on_switch(governor->settings.context, present, chosen);
  return chosen;
}

edgec_governor_report edgec_governor_reported(const edgec_governor* governor) {
  edgec_governor_report report = governor->report;
  report.slowdown = governor->mean;
  if (governor->current >= 0) {
    const edgec_option* of = &governor->options[governor->current];
    report.slowdown *= usual_ms(governor, governor->current) / of->latency_ms;
  }
  return report;
}
