/* A language model's programs, chosen by how many tokens there are to read, and its cache. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "generator.h"
#include "speculation.h"

#define ALIGNMENT 64
#define CACHE_MAGIC "EDGECPC1"

struct edgec_generator {
  const edgec_model* model;
  edgec_session* session;
  int32_t text;        /* of those that the session keeps */
  int32_t past_length; /* number of this state */
  int32_t context, vocabulary, most_tokens, most_rows;
  int64_t* input_ids; /* of the largest program */
  int64_t* last;
  float* logits; /* of as many tokens as a program gives them of */
  int32_t* tokens; /* that the cache holds, then guesses that it holds, too */
  size_t count, guessed;
  size_t row; /* of logits: of the last token that was read */
  int32_t most_guesses;
  edgec_guess_account account;
  edgec_guess_counts counts;
  char error[256];
};

static int64_t fail(edgec_generator* generator, int64_t code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(generator->error, sizeof generator->error, format, arguments);
  va_end(arguments);
  return code;
}

static void* allocate(size_t bytes) {
  void* memory = NULL;
  return posix_memalign(&memory, ALIGNMENT, bytes ? bytes : 1) ? NULL : memory;
}

/* ---- what the model is ---- */

static const edgec_tensor* find(const edgec_tensor* tensors, int32_t count, const char* name) {
  for (int32_t i = 0; i < count; ++i)
    if (!strcmp(tensors[i].name, name)) return &tensors[i];
  return NULL;
}

static int is_like(const edgec_tensor* tensor, const char* dtype, int32_t rank) {
  return tensor && tensor->rank == rank && !strcmp(tensor->dtype, dtype);
}

/* Texts that a program reads at once. */
static int32_t program_texts(const edgec_generator* generator, int32_t program) {
  const edgec_program* found = &generator->model->programs[program];
  return (int32_t)find(found->inputs, found->input_count, "input_ids")->shape[0];
}

/* Tokens of a text that a program gives logits of: the last one, or each of a few. */
static int32_t program_rows(const edgec_generator* generator, int32_t program) {
  const edgec_program* found = &generator->model->programs[program];
  return (int32_t)find(found->outputs, found->output_count, "logits")->shape[1];
}

/* Tokens that a program reads at once of a text. */
static int32_t program_tokens(const edgec_generator* generator, int32_t program) {
  const edgec_program* found = &generator->model->programs[program];
  return (int32_t)find(found->inputs, found->input_count, "input_ids")->shape[1];
}

static int is_cache(const edgec_tensor* state) {
  return state->rank == 4 && !strncmp(state->name, "past_key_values", 15);
}

static const char* read_model(edgec_generator* generator) {
  const edgec_model* model = generator->model;
  int single = 0;
  for (int32_t i = 0; i < model->program_count; ++i) {
    const edgec_program* program = &model->programs[i];
    const edgec_tensor* ids = find(program->inputs, program->input_count, "input_ids");
    const edgec_tensor* last = find(program->inputs, program->input_count, "last");
    const edgec_tensor* logits = find(program->outputs, program->output_count, "logits");
    if (program->input_count != 2 || !is_like(ids, "int64", 2) || !is_like(last, "int64", 2))
      return "its inputs are not input_ids and last";
    if (program->output_count != 1 || !is_like(logits, "float32", 3) ||
        logits->shape[1] != last->shape[1])
      return "its output is not the logits of the tokens that last names";
    int64_t rows = logits->shape[1];
    if (rows != 1 && (rows != ids->shape[1] || ids->shape[0] != 1))
      return "it gives logits of neither the last token nor each of one text";
    if (ids->shape[0] > 1 && ids->shape[1] > 1) return "it takes chunks of several texts at once";
    if (rows > generator->most_rows) generator->most_rows = (int32_t)rows;
    single |= ids->shape[0] == 1 && ids->shape[1] == 1;
    if (ids->shape[1] > generator->most_tokens) generator->most_tokens = (int32_t)ids->shape[1];
    generator->vocabulary = (int32_t)logits->shape[2];
  }
  if (!single) return "it has no program of one token";
  if (generator->text < 0 || generator->text >= model->state_parts)
    return "its sessions keep fewer texts";
  generator->past_length = -1;
  for (int32_t i = 0; i < model->state_count; ++i) {
    const edgec_tensor* state = &model->states[i];
    if (!strcmp(state->name, "past_length") && !strcmp(state->dtype, "int32") &&
        state->bytes == 4 * (size_t)model->state_parts)
      generator->past_length = i;
    if (is_cache(state) && (!generator->context || state->shape[2] < generator->context))
      generator->context = (int32_t)state->shape[2];
  }
  if (generator->past_length < 0) return "it has no state past_length";
  return generator->context ? NULL : "it has no cache past_key_values";
}

edgec_generator* edgec_generator_open(const edgec_model* model, edgec_session* session, int32_t text,
                                      char* message, size_t room) {
  edgec_generator* generator = calloc(1, sizeof *generator);
  if (!generator) {
    snprintf(message, room, "no memory");
    return NULL;
  }
  generator->model = model;
  generator->session = session;
  generator->text = text;
  generator->most_guesses = EDGEC_GUESSES_THAT_PAY;
  const char* problem = read_model(generator);
  if (!problem) {
    generator->input_ids = allocate((size_t)generator->most_tokens * sizeof(int64_t));
    size_t rows = (size_t)generator->most_rows;
    generator->last = allocate(rows * sizeof(int64_t));
    generator->logits = allocate(rows * (size_t)generator->vocabulary * sizeof(float));
    generator->tokens = allocate((size_t)generator->context * sizeof(int32_t));
    if (generator->input_ids && generator->last && generator->logits && generator->tokens)
      return generator;
  }
  snprintf(message, room, problem ? "the model is no language model: %s" : "no memory", problem);
  edgec_generator_close(generator);
  return NULL;
}

void edgec_generator_close(edgec_generator* generator) {
  if (!generator) return;
  free(generator->input_ids);
  free(generator->last);
  free(generator->logits);
  free(generator->tokens);
  free(generator);
}

int32_t edgec_generator_context(const edgec_generator* generator) { return generator->context; }

int32_t edgec_generator_vocabulary(const edgec_generator* generator) {
  return generator->vocabulary;
}

const float* edgec_generator_logits(const edgec_generator* generator) {
  return generator->logits + generator->row * (size_t)generator->vocabulary;
}

size_t edgec_generator_tokens(const edgec_generator* generator, const int32_t** ids) {
  *ids = generator->tokens;
  return generator->count;
}

const char* edgec_generator_error(const edgec_generator* generator) { return generator->error; }

/* ---- reading tokens ---- */

/* What the session keeps of a state for this text. */
static char* state_of(const edgec_generator* generator, int32_t number) {
  const edgec_model* model = generator->model;
  size_t bytes = model->states[number].bytes / (size_t)model->state_parts;
  return (char*)model->state(generator->session, number) + (size_t)generator->text * bytes;
}

/* Forget all but the first tokens. Rows of the cache behind them are written again before they
 * are read. */
static void rewind_to(edgec_generator* generator, size_t count) {
  int32_t length = (int32_t)count;
  memcpy(state_of(generator, generator->past_length), &length, sizeof length);
  generator->count = count;
  generator->guessed = 0;
}

/* Forget guesses that nobody took, before something else is read. */
static void forget_guesses(edgec_generator* generator) {
  if (generator->guessed) rewind_to(generator, generator->count);
}

/* The program for so many tokens, of those of one token or of those of several: the smallest that
 * takes them at once, else the largest; one whose rows, padding among them, fit behind those that the
 * cache holds. -1 if none does. */
static int32_t choose_among(const edgec_generator* generator, size_t wanted, int single) {
  int32_t chosen = -1, chosen_tokens = 0;
  size_t room = (size_t)generator->context - generator->count;
  for (int32_t i = 0; i < generator->model->program_count; ++i) {
    int32_t tokens = program_tokens(generator, i);
    if (program_texts(generator, i) > 1 || (size_t)tokens > room || (tokens == 1) != single ||
        program_rows(generator, i) > 1)
      continue;
    int enough = (size_t)tokens >= wanted, was_enough = (size_t)chosen_tokens >= wanted;
    if (chosen < 0 || (enough ? !was_enough || tokens < chosen_tokens
                              : !was_enough && tokens > chosen_tokens)) {
      chosen = i;
      chosen_tokens = tokens;
    }
  }
  return chosen;
}

/* Tokens of a prompt are not read one by one while a chunk fits, however few they are: programs round
 * differently, and what is computed must not depend on what the cache held before. */
static int32_t choose_program(const edgec_generator* generator, size_t wanted, int prompt) {
  int32_t chunk = prompt ? choose_among(generator, wanted, 0) : -1;
  return chunk < 0 ? choose_among(generator, wanted, 1) : chunk;
}

/* Run a program on the next tokens, no more than it reads at once. Those behind the first
 * `known` are guesses. */
static int64_t run_program(edgec_generator* generator, int32_t number, const int32_t* ids,
                           size_t known, size_t guessed) {
  const edgec_program* program = &generator->model->programs[number];
  size_t tokens = (size_t)program_tokens(generator, number), taken = known + guessed;
  int32_t rows = program_rows(generator, number);
  for (size_t i = 0; i < tokens; ++i) generator->input_ids[i] = i < taken ? ids[i] : 0;
  for (int32_t i = 0; i < rows; ++i) {
    int64_t end = (int64_t)taken - 1;
    generator->last[i] = rows > 1 && i < end ? i : end;
  }
  const void* inputs[2];
  for (int32_t i = 0; i < 2; ++i)
    inputs[i] = strcmp(program->inputs[i].name, "last") ? (void*)generator->input_ids
                                                        : (void*)generator->last;
  void* outputs[] = {generator->logits};
  if (generator->model->run_part(generator->session, number, generator->text, inputs, outputs, NULL))
    return fail(generator, EDGEC_RUN_FAILED, "%s", generator->model->error(generator->session));
  memmove(generator->tokens + generator->count, ids, taken * sizeof *ids);
  generator->count += known;
  generator->guessed = guessed;
  generator->row = 0;
  return (int64_t)known;
}

/* Run one program on the next tokens; how many it read. */
static int64_t read_chunk(edgec_generator* generator, const int32_t* ids, size_t count,
                          int prompt) {
  int32_t number = choose_program(generator, count, prompt);
  if (number < 0)
    return fail(generator, EDGEC_CONTEXT_FULL, "the context of %" PRId32 " tokens is full",
                generator->context);
  size_t tokens = (size_t)program_tokens(generator, number);
  return run_program(generator, number, ids, count < tokens ? count : tokens, 0);
}

static int64_t read_tokens(edgec_generator* generator, const int32_t* ids, size_t count,
                           int prompt) {
  for (size_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= generator->vocabulary)
      return fail(generator, EDGEC_RUN_FAILED,
                  "token %" PRId32 " is none of the model's %" PRId32, ids[i],
                  generator->vocabulary);
  for (size_t done = 0; done < count;) {
    int64_t taken = read_chunk(generator, ids + done, count - done, prompt);
    if (taken < 0) return taken;
    done += (size_t)taken;
  }
  return (int64_t)count;
}

int64_t edgec_generator_read(edgec_generator* generator, const int32_t* ids, size_t count) {
  if (!count) return fail(generator, EDGEC_RUN_FAILED, "the prompt has no tokens");
  if (count > (size_t)generator->context)
    return fail(generator, EDGEC_CONTEXT_FULL,
                "the prompt has %zu tokens, the context is %" PRId32
                "; shorten it, or compile with a larger --context",
                count, generator->context);
  size_t shared = 0;
  while (shared < generator->count && shared + 1 < count && generator->tokens[shared] == ids[shared])
    ++shared;
  rewind_to(generator, shared);
  return read_tokens(generator, ids + shared, count - shared, 1);
}

/* ---- guesses ---- */

void edgec_generator_speculate(edgec_generator* generator, int32_t most_guesses) {
  generator->most_guesses = most_guesses;
}

edgec_guess_counts edgec_generator_guesses(const edgec_generator* generator) {
  return generator->counts;
}

/* The program that gives logits of each token, if its rows fit behind those that the cache holds;
 * else -1. */
static int32_t choose_checking(const edgec_generator* generator) {
  if (!generator->most_guesses) return -1;
  size_t room = (size_t)generator->context - generator->count;
  for (int32_t i = 0; i < generator->model->program_count; ++i)
    if (program_rows(generator, i) > 1 && (size_t)program_tokens(generator, i) <= room) return i;
  return -1;
}

/* Whether a token is what was guessed: then the cache and the logits have it already. */
static int take_guess(edgec_generator* generator, int32_t id) {
  if (!generator->guessed || generator->tokens[generator->count] != id) return 0;
  ++generator->count;
  --generator->guessed;
  ++generator->row;
  ++generator->counts.right;
  edgec_note_right(&generator->account);
  return 1;
}

int64_t edgec_generator_append(edgec_generator* generator, int32_t id) {
  if (take_guess(generator, id)) return 1;
  forget_guesses(generator);
  int32_t checking = id < 0 || id >= generator->vocabulary ? -1 : choose_checking(generator);
  double began = edgec_now();
  size_t guessed = 0, matching = 0;
  if (checking >= 0) {
    size_t most = (size_t)program_tokens(generator, checking) - 1;
    int paying = generator->most_guesses == EDGEC_GUESSES_THAT_PAY;
    if (!paying && (size_t)generator->most_guesses < most)
      most = (size_t)generator->most_guesses;
    int32_t* next = generator->tokens + generator->count;
    next[0] = id;
    matching = edgec_guess(generator->tokens, generator->count + 1, next + 1, most);
    if (matching && (!paying || edgec_guesses_pay(&generator->account, matching))) guessed = most;
  }
  if (!guessed) {
    int64_t taken = read_tokens(generator, &id, 1, 0);
    edgec_note_plain(&generator->account, edgec_now() - began);
    return taken;
  }
  const int32_t* next = generator->tokens + generator->count;
  int64_t taken = run_program(generator, checking, next, 1, guessed);
  edgec_note_checked(&generator->account, matching, edgec_now() - began);
  ++generator->counts.runs;
  generator->counts.guessed += (int64_t)guessed;
  return taken;
}

/* ---- several texts at once ---- */

/* The program of a token of each of the most texts up to so many; -1 if there is none of several. */
static int32_t choose_together(const edgec_generator* generator, int32_t most) {
  int32_t chosen = -1, texts = 1;
  for (int32_t i = 0; i < generator->model->program_count; ++i) {
    int32_t here = program_texts(generator, i);
    if (here > texts && here <= most) {
      chosen = i;
      texts = here;
    }
  }
  return chosen;
}

/* Run a program of several texts: those from `first` on. Texts that nobody asked for stay as they
 * are: all their tokens are padding. */
static int run_together(const edgec_generator* any, int32_t number, int32_t first,
                        edgec_generator* const* generators, const int32_t* ids,
                        const unsigned char* wanted, size_t count, float* logits) {
  const edgec_program* program = &any->model->programs[number];
  int32_t texts = program_texts(any, number);
  int64_t* places = allocate(2 * (size_t)texts * sizeof *places);
  if (!places) return -1;
  int64_t *input_ids = places, *last = places + texts;
  for (int32_t i = 0; i < texts; ++i) {
    input_ids[i] = 0;
    last[i] = -1;
  }
  for (size_t i = 0; i < count; ++i) {
    int32_t row = generators[i]->text - first;
    if (!wanted[i] || row < 0 || row >= texts) continue;
    input_ids[row] = ids[i];
    last[row] = 0;
  }
  const void* inputs[2];
  for (int32_t i = 0; i < 2; ++i)
    inputs[i] = strcmp(program->inputs[i].name, "last") ? input_ids : last;
  void* outputs[] = {logits};
  int failed = any->model->run_part(any->session, number, first / texts, inputs, outputs, NULL);
  free(places);
  return failed;
}

/* Whether a generator takes a token, and what became of it if not. */
static int may_append(edgec_generator* generator, int32_t id, int64_t* result) {
  *result = 1;
  if (id < 0 || id >= generator->vocabulary)
    *result = fail(generator, EDGEC_RUN_FAILED, "token %" PRId32 " is none of the model's", id);
  else if (generator->count >= (size_t)generator->context)
    *result = fail(generator, EDGEC_CONTEXT_FULL, "the context of %" PRId32 " tokens is full",
                   generator->context);
  return *result > 0;
}

void edgec_generators_append(edgec_generator* const* generators, const int32_t* ids, size_t count,
                             int64_t* results) {
  unsigned char* wanted = calloc(count + 1, 1);
  size_t left = 0;
  for (size_t i = 0; wanted && i < count; ++i)
    left += wanted[i] = (unsigned char)may_append(generators[i], ids[i], &results[i]);
  /* What was guessed is there; what is run together guesses nothing. */
  for (size_t i = 0; wanted && i < count; ++i) {
    if (!wanted[i] || !take_guess(generators[i], ids[i])) continue;
    wanted[i] = 0;
    --left;
  }
  for (size_t i = 0; left > 1 && i < count; ++i)
    if (wanted[i]) forget_guesses(generators[i]);
  const edgec_generator* any = count ? generators[0] : NULL;
  int32_t parts = count ? any->model->state_parts : 1;
  float* logits = left > 1 ? allocate((size_t)parts * (size_t)any->vocabulary * sizeof *logits) : NULL;
  /* Of the groups of texts that programs are for, the largest first in which most are wanted. */
  for (int32_t texts = parts; logits && texts > 1; texts /= 2) {
    int32_t number = choose_together(any, texts);
    if (number < 0 || program_texts(any, number) != texts) continue;
    for (int32_t first = 0; first + texts <= parts; first += texts) {
      int32_t here = 0;
      for (size_t i = 0; i < count; ++i)
        here += wanted[i] && generators[i]->text / texts == first / texts;
      if (2 * here <= texts) continue;
      if (run_together(any, number, first, generators, ids, wanted, count, logits)) continue;
      for (size_t i = 0; i < count; ++i) {
        edgec_generator* generator = generators[i];
        if (!wanted[i] || generator->text / texts != first / texts) continue;
        memcpy(generator->logits, logits + (size_t)(generator->text - first) * (size_t)any->vocabulary,
               (size_t)any->vocabulary * sizeof *logits);
        generator->tokens[generator->count++] = ids[i];
        generator->row = 0;
        wanted[i] = 0;
      }
    }
  }
  for (size_t i = 0; i < count; ++i)
    if (!wanted || wanted[i]) results[i] = edgec_generator_append(generators[i], ids[i]);
  free(logits);
  free(wanted);
}

/* ---- the cache in a file: magic, digest, the number of tokens, the tokens, then of each cache the
 * rows of these tokens, of each other state all of it ---- */

typedef struct {
  size_t blocks, block_bytes, kept_bytes; /* of each block its first bytes are kept */
} layout;

static layout layout_of(const edgec_generator* generator, const edgec_tensor* state) {
  size_t bytes = state->bytes / (size_t)generator->model->state_parts;
  if (!is_cache(state)) return (layout){1, bytes, bytes};
  size_t blocks = (size_t)(state->shape[0] / generator->model->state_parts * state->shape[1]);
  size_t block = bytes / blocks, row = block / (size_t)state->shape[2];
  return (layout){blocks, block, row * generator->count};
}

int64_t edgec_generator_save(edgec_generator* generator, const char* path,
                             const unsigned char digest[32]) {
  const edgec_model* model = generator->model;
  forget_guesses(generator);
  uint32_t count = (uint32_t)generator->count;
  FILE* file = fopen(path, "wb");
  if (!file) return fail(generator, EDGEC_BAD_CACHE, "cannot write %s: %s", path, strerror(errno));
  int good = fwrite(CACHE_MAGIC, 8, 1, file) == 1 && fwrite(digest, 32, 1, file) == 1 &&
             fwrite(&count, sizeof count, 1, file) == 1 &&
             fwrite(generator->tokens, sizeof(int32_t), count, file) == count;
  for (int32_t i = 0; i < model->state_count && good; ++i) {
    layout kept = layout_of(generator, &model->states[i]);
    const char* state = state_of(generator, i);
    for (size_t b = 0; b < kept.blocks && good; ++b, state += kept.block_bytes)
      good = fwrite(state, 1, kept.kept_bytes, file) == kept.kept_bytes;
  }
  if (fclose(file) || !good) {
    int problem = errno;
    remove(path);
    return fail(generator, EDGEC_BAD_CACHE, "cannot write %s: %s", path, strerror(problem));
  }
  return 0;
}

/* The tokens of a file whose size is right; the place behind them. -1 if it is of another model. */
static int read_head(edgec_generator* generator, FILE* file, const unsigned char digest[32]) {
  unsigned char head[40];
  uint32_t count;
  if (fread(head, sizeof head, 1, file) != 1 || memcmp(head, CACHE_MAGIC, 8) ||
      memcmp(head + 8, digest, 32) || fread(&count, sizeof count, 1, file) != 1 ||
      count > (uint32_t)generator->context)
    return -1;
  generator->count = count;
  uint64_t bytes = sizeof head + sizeof count + (uint64_t)count * sizeof(int32_t);
  for (int32_t i = 0; i < generator->model->state_count; ++i) {
    layout kept = layout_of(generator, &generator->model->states[i]);
    bytes += (uint64_t)kept.blocks * kept.kept_bytes;
  }
  long here = ftell(file);
  if (fseek(file, 0, SEEK_END) || (uint64_t)ftell(file) != bytes) return -1;
  if (fseek(file, here, SEEK_SET)) return -1;
  return fread(generator->tokens, sizeof(int32_t), count, file) == count ? 0 : -1;
}

int64_t edgec_generator_load(edgec_generator* generator, const char* path,
                             const unsigned char digest[32]) {
  const edgec_model* model = generator->model;
  FILE* file = fopen(path, "rb");
  if (!file) return fail(generator, EDGEC_BAD_CACHE, "cannot read %s: %s", path, strerror(errno));
  int good = !read_head(generator, file, digest);
  for (int32_t i = 0; i < model->state_count && good; ++i) {
    layout kept = layout_of(generator, &model->states[i]);
    char* state = state_of(generator, i);
    for (size_t b = 0; b < kept.blocks && good; ++b, state += kept.block_bytes)
      good = fread(state, 1, kept.kept_bytes, file) == kept.kept_bytes;
  }
  fclose(file);
  rewind_to(generator, good ? generator->count : 0);
  if (good) return 0;
  return fail(generator, EDGEC_BAD_CACHE, "%s is no prompt cache of this model, or damaged", path);
}
