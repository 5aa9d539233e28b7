/* A language model's programs, chosen by how many tokens there are to read, and its cache. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "generator.h"

#define ALIGNMENT 64
/* A program of many tokens computes its padding, too. So few tokens that it would be mostly
 * padding are read one by one: at this share of its tokens both take about as long. */
#define LEAST_SHARE 16
#define CACHE_MAGIC "EDGECPC1"

struct edgec_generator {
  const edgec_model* model;
  edgec_session* session;
  int32_t past_length; /* number of this state */
  int32_t context, vocabulary, most_tokens;
  int64_t* input_ids; /* of the largest program */
  int64_t* last;
  float* logits;
  int32_t* tokens; /* that the cache holds */
  size_t count;
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

/* Tokens that a program reads at once. */
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
    if (program->input_count != 2 || !is_like(ids, "int64", 2) || !is_like(last, "int64", 1))
      return "its inputs are not input_ids and last";
    if (program->output_count != 1 || !is_like(logits, "float32", 3) || logits->shape[1] != 1)
      return "its output is not the logits of one token";
    if (ids->shape[0] != 1) return "it takes several texts at once";
    single |= ids->shape[1] == 1;
    if (ids->shape[1] > generator->most_tokens) generator->most_tokens = (int32_t)ids->shape[1];
    generator->vocabulary = (int32_t)logits->shape[2];
  }
  if (!single) return "it has no program of one token";
  generator->past_length = -1;
  for (int32_t i = 0; i < model->state_count; ++i) {
    const edgec_tensor* state = &model->states[i];
    if (!strcmp(state->name, "past_length") && !strcmp(state->dtype, "int32") && state->bytes == 4)
      generator->past_length = i;
    if (is_cache(state) && (!generator->context || state->shape[2] < generator->context))
      generator->context = (int32_t)state->shape[2];
  }
  if (generator->past_length < 0) return "it has no state past_length";
  return generator->context ? NULL : "it has no cache past_key_values";
}

edgec_generator* edgec_generator_open(const edgec_model* model, edgec_session* session,
                                      char* message, size_t room) {
  edgec_generator* generator = calloc(1, sizeof *generator);
  if (!generator) {
    snprintf(message, room, "no memory");
    return NULL;
  }
  generator->model = model;
  generator->session = session;
  const char* problem = read_model(generator);
  if (!problem) {
    generator->input_ids = allocate((size_t)generator->most_tokens * sizeof(int64_t));
    generator->last = allocate(sizeof(int64_t));
    generator->logits = allocate((size_t)generator->vocabulary * sizeof(float));
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

const float* edgec_generator_logits(const edgec_generator* generator) { return generator->logits; }

size_t edgec_generator_tokens(const edgec_generator* generator, const int32_t** ids) {
  *ids = generator->tokens;
  return generator->count;
}

const char* edgec_generator_error(const edgec_generator* generator) { return generator->error; }

/* ---- reading tokens ---- */

/* Forget all but the first tokens. Rows of the cache behind them are written again before they
 * are read. */
static void rewind_to(edgec_generator* generator, size_t count) {
  int32_t length = (int32_t)count;
  void* state = generator->model->state(generator->session, generator->past_length);
  memcpy(state, &length, sizeof length);
  generator->count = count;
}

/* The program for so many tokens: the smallest that takes them at once, else the largest; one
 * whose rows, padding among them, fit behind those that the cache holds. -1 if none does. */
static int32_t choose_program(const edgec_generator* generator, size_t wanted) {
  int32_t chosen = -1, chosen_tokens = 0;
  size_t room = (size_t)generator->context - generator->count;
  for (int32_t i = 0; i < generator->model->program_count; ++i) {
    int32_t tokens = program_tokens(generator, i);
    if ((size_t)tokens > room || (tokens > 1 && wanted * LEAST_SHARE <= (size_t)tokens)) continue;
    int enough = (size_t)tokens >= wanted, was_enough = (size_t)chosen_tokens >= wanted;
    if (chosen < 0 || (enough ? !was_enough || tokens < chosen_tokens
                              : !was_enough && tokens > chosen_tokens)) {
      chosen = i;
      chosen_tokens = tokens;
    }
  }
  return chosen;
}

/* Run one program on the next tokens; how many it read. */
static int64_t read_chunk(edgec_generator* generator, const int32_t* ids, size_t count) {
  int32_t number = choose_program(generator, count);
  if (number < 0)
    return fail(generator, EDGEC_CONTEXT_FULL, "the context of %" PRId32 " tokens is full",
                generator->context);
  const edgec_program* program = &generator->model->programs[number];
  size_t tokens = (size_t)program_tokens(generator, number);
  size_t taken = count < tokens ? count : tokens;
  for (size_t i = 0; i < tokens; ++i) generator->input_ids[i] = i < taken ? ids[i] : 0;
  *generator->last = (int64_t)taken - 1;
  const void* inputs[2];
  for (int32_t i = 0; i < 2; ++i)
    inputs[i] = strcmp(program->inputs[i].name, "last") ? (void*)generator->input_ids
                                                        : (void*)generator->last;
  void* outputs[] = {generator->logits};
  if (generator->model->run_program(generator->session, number, inputs, outputs, NULL))
    return fail(generator, EDGEC_RUN_FAILED, "%s", generator->model->error(generator->session));
  memcpy(generator->tokens + generator->count, ids, taken * sizeof *ids);
  generator->count += taken;
  return (int64_t)taken;
}

static int64_t read_tokens(edgec_generator* generator, const int32_t* ids, size_t count) {
  for (size_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= generator->vocabulary)
      return fail(generator, EDGEC_RUN_FAILED,
                  "token %" PRId32 " is none of the model's %" PRId32, ids[i],
                  generator->vocabulary);
  for (size_t done = 0; done < count;) {
    int64_t taken = read_chunk(generator, ids + done, count - done);
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
  return read_tokens(generator, ids + shared, count - shared);
}

int64_t edgec_generator_append(edgec_generator* generator, int32_t id) {
  return read_tokens(generator, &id, 1);
}

/* ---- the cache in a file: magic, digest, the number of tokens, the tokens, then of each cache the
 * rows of these tokens, of each other state all of it ---- */

typedef struct {
  size_t blocks, block_bytes, kept_bytes; /* of each block its first bytes are kept */
} layout;

static layout layout_of(const edgec_generator* generator, const edgec_tensor* state) {
  if (!is_cache(state)) return (layout){1, state->bytes, state->bytes};
  size_t blocks = (size_t)(state->shape[0] * state->shape[1]);
  size_t block = state->bytes / blocks, row = block / (size_t)state->shape[2];
  return (layout){blocks, block, row * generator->count};
}

int64_t edgec_generator_save(edgec_generator* generator, const char* path,
                             const unsigned char digest[32]) {
  const edgec_model* model = generator->model;
  uint32_t count = (uint32_t)generator->count;
  FILE* file = fopen(path, "wb");
  if (!file) return fail(generator, EDGEC_BAD_CACHE, "cannot write %s: %s", path, strerror(errno));
  int good = fwrite(CACHE_MAGIC, 8, 1, file) == 1 && fwrite(digest, 32, 1, file) == 1 &&
             fwrite(&count, sizeof count, 1, file) == 1 &&
             fwrite(generator->tokens, sizeof(int32_t), count, file) == count;
  for (int32_t i = 0; i < model->state_count && good; ++i) {
    layout kept = layout_of(generator, &model->states[i]);
    const char* state = model->state(generator->session, i);
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
    char* state = model->state(generator->session, i);
    for (size_t b = 0; b < kept.blocks && good; ++b, state += kept.block_bytes)
      good = fread(state, 1, kept.kept_bytes, file) == kept.kept_bytes;
  }
  fclose(file);
  rewind_to(generator, good ? generator->count : 0);
  if (good) return 0;
  return fail(generator, EDGEC_BAD_CACHE, "%s is no prompt cache of this model, or damaged", path);
}
