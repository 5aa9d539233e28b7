/* The choice of the next token. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "generation.h"

typedef struct {
  double score; /* logit, later its share */
  int32_t id;
} choice;

struct edgec_sampler {
  edgec_sampling sampling;
  int32_t tokens;
  uint64_t state;
  unsigned char* noted; /* by token: whether the context has it */
  choice* choices;
};

edgec_sampler* edgec_sampler_open(int32_t tokens, const edgec_sampling* sampling) {
  edgec_sampler* sampler = calloc(1, sizeof *sampler);
  if (!sampler) return NULL;
  sampler->sampling = *sampling;
  sampler->tokens = tokens;
  sampler->noted = calloc((size_t)tokens, 1);
  sampler->choices = malloc((size_t)tokens * sizeof(choice));
  if (!sampler->noted || !sampler->choices) {
    edgec_sampler_close(sampler);
    return NULL;
  }
  edgec_sampler_reset(sampler);
  return sampler;
}

void edgec_sampler_close(edgec_sampler* sampler) {
  if (!sampler) return;
  free(sampler->noted);
  free(sampler->choices);
  free(sampler);
}

void edgec_sampler_note(edgec_sampler* sampler, int32_t id) {
  if (id >= 0 && id < sampler->tokens) sampler->noted[id] = 1;
}

void edgec_sampler_reset(edgec_sampler* sampler) {
  memset(sampler->noted, 0, (size_t)sampler->tokens);
  sampler->state = sampler->sampling.seed;
}

/* A number of [0, 1) by SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
 * Generators, 2014). */
static double uniform(edgec_sampler* sampler) {
  uint64_t mixed = sampler->state += 0x9E3779B97F4A7C15u;
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
  mixed ^= mixed >> 31;
  return (double)(mixed >> 11) * 0x1p-53;
}

/* The logit of a token, a noted one divided by the penalty, or multiplied if it is negative
 * (Keskar and others: CTRL, 2019, section 4.1, in the form of transformers'
 * RepetitionPenaltyLogitsProcessor). */
static double penalized(const edgec_sampler* sampler, const float* logits, int32_t id) {
  double logit = (double)logits[id], penalty = (double)sampler->sampling.repetition_penalty;
  if (penalty == 0 || !sampler->noted[id]) return logit;
  return logit < 0 ? logit * penalty : logit / penalty;
}

static int better(const choice* one, const choice* other) {
  return one->score > other->score || (one->score == other->score && one->id < other->id);
}

static void sift_down(choice* heap, int32_t count, int32_t at) {
  choice moved = heap[at];
  for (int64_t child = 2 * (int64_t)at + 1; child < count; child = 2 * child + 1) {
    if (child + 1 < count && better(&heap[child + 1], &heap[child])) ++child;
    if (!better(&heap[child], &moved)) break;
    heap[at] = heap[child];
    at = (int32_t)child;
  }
  heap[at] = moved;
}

/* Take the best of `count` choices from the heap, and put it behind those that are left. */
static void pop_best(choice* heap, int32_t count) {
  choice best = heap[0];
  heap[0] = heap[count - 1];
  heap[count - 1] = best;
  if (count > 1) sift_down(heap, count - 1, 0);
}

/* Turn scores into weights of the softmax; their sum. */
static double weigh(choice* choices, int32_t count, double highest) {
  double sum = 0;
  for (int32_t i = 0; i < count; ++i) sum += choices[i].score = exp(choices[i].score - highest);
  return sum;
}

/* Keep the best choices, the best last, as weights; how many: at most `most`, none that is less
 * than min_p times as likely as the best, no more than it takes to reach the share top_p. */
static int32_t keep_best(const edgec_sampling* asked, choice* choices, int32_t count, int32_t most,
                         double highest) {
  for (int32_t i = count / 2; i--;) sift_down(choices, count, i);
  int32_t sorted = 0, kept = 0;
  /* The share is of what top_k leaves, so that is sorted first. */
  for (; most < count && sorted < most; ++sorted) pop_best(choices, count - sorted);
  double all = weigh(choices + (sorted ? count - sorted : 0), sorted ? sorted : count, highest);
  double enough = asked->top_p > 0 && asked->top_p < 1 ? (double)asked->top_p * all : INFINITY;
  for (double sum = 0; kept < most; ++kept) {
    if (kept == sorted) pop_best(choices, count - sorted++);
    double weight = choices[count - 1 - kept].score;
    if (kept && (weight < (double)asked->min_p || sum >= enough)) break;
    sum += weight;
  }
  return kept;
}

/* Draw from the last `kept` of the choices, the best last. */
static int32_t draw(edgec_sampler* sampler, int32_t count, int32_t kept) {
  const choice* last = &sampler->choices[count - 1];
  double sum = 0, place, until = 0;
  for (int32_t i = 0; i < kept; ++i) sum += last[-i].score;
  place = uniform(sampler) * sum;
  for (int32_t i = 0; i < kept; ++i) {
    until += last[-i].score;
    if (place < until) return last[-i].id;
  }
  return last[1 - kept].id;
}

/* The token of the largest finite logit, the first of equals; -1: there is none. */
static int32_t largest_logit(const float* logits, int32_t tokens) {
  int32_t best = -1;
  float highest = -INFINITY;
  for (int32_t id = 0; id < tokens; ++id) {
    if (!(logits[id] > highest) || !isfinite(logits[id])) continue;
    highest = logits[id];
    best = id;
  }
  return best;
}

/* Sampling by shares of the softmax of the logits divided by the temperature. top_k: Fan and
 * others 2018. top_p, of what top_k leaves: Holtzman and others 2019, the fewest choices whose
 * shares reach it. min_p: Nguyen and others 2024, no less than that share of the best's. */
int32_t edgec_sample(edgec_sampler* sampler, const float* logits) {
  const edgec_sampling* asked = &sampler->sampling;
  choice* choices = sampler->choices;
  int32_t count = 0, best = -1;
  float penalty = asked->repetition_penalty; /* 0 and 1 are none */
  if (asked->temperature <= 0 && (penalty == 0 || penalty == 1))
    return largest_logit(logits, sampler->tokens);
  for (int32_t id = 0; id < sampler->tokens; ++id) {
    double logit = penalized(sampler, logits, id);
    if (!isfinite(logit)) continue; /* a token that the model rules out */
    choices[count] = (choice){logit, id};
    if (best < 0 || logit > choices[best].score) best = count;
    ++count;
  }
  if (best < 0) return -1;
  if (asked->temperature <= 0) return choices[best].id;
  for (int32_t i = 0; i < count; ++i) choices[i].score /= (double)asked->temperature;
  double highest = choices[best].score;
  int32_t most = asked->top_k > 0 && asked->top_k < count ? asked->top_k : count;
  int cuts = most < count || asked->min_p > 0 || (asked->top_p > 0 && asked->top_p < 1);
  if (!cuts) weigh(choices, count, highest);
  return draw(sampler, count, cuts ? keep_best(asked, choices, count, most, highest) : count);
}
