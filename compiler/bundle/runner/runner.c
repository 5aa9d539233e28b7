/* Runs the model of a bundle from the command line. Needs model.so beside it, and the C library.
 *
 *     ./run --input image.npy --output scores.npy
 *     ./run --repeat 100 --threads 4
 *     ./run --steps --input chunks.npy --output scores.npy --save stream.state
 *     ./run --verify
 *     ./run --install; ./run --deadline 20 --repeat 1000 --period 33
 *     ./run --prompt 'The capital of France is' --max-tokens 8
 *
 * It is meant to be read. It loads whatever model is beside it; how a program of your own links
 * models by their names is shown in app.cpp. */
#include <dlfcn.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "edgec.h"
#include "govern.h"
#include "npy.h"
#include "parity.h"
#include "process.h"
#include "stage.h"
#include "talk.h"
#include "trust.h"

#define ALIGNMENT 64 /* memory aligned to this is used in place */
#define VECTORS "vectors/vectors.txt"
#define TOKENIZER "tokenizer.bin"
#define ANSWERED_BY "early_exit" /* an output: which exit answered, 0 the whole model */

enum { CHECK_FAILED = 1, USAGE = 2, BAD_INPUT = TRUST_BAD_INPUT };

static const char usage[] =
    "usage: ./run [options]\n"
    "  --input [NAME=]FILE.npy    an input; without any, those of the first test vector are used\n"
    "  --output [NAME=]FILE.npy   where to write an output\n"
    "  --program NAME             which of several; else the one that takes the inputs\n"
    "  --steps                    inputs and outputs have one more axis in front: run once for each\n"
    "                             entry, with the state that the run before left\n"
    "  --load FILE                begin with this state\n"
    "  --save FILE                where to write the state after --steps, or after one run\n"
    "  --repeat N                 timed runs after the first one (default 1)\n"
    "  --threads N                threads to compute on (default 0: one for each core that it may use)\n"
    "  --bundle FOLDER            the bundle (default: the folder of this program)\n"
    "  --verify                   run the bundle's test vectors and compare their outputs\n"
    "  --install                  verify and measure the variants, and keep that for this machine\n"
    "  --deadline MS              run --repeat times, each time the variant that takes no longer\n"
    "  --period MS                from the begin of one such run to the next (default 0: at once)\n"
    "  --sys, --proc FOLDER       of heat, clock, battery and load (default /sys, /proc)\n"
    "Prints JSON. Exit codes: 0 ok, 1 an output is not within its tolerance, 2 usage,\n"
    "4 a file or the memory does not fit, 8 a signature is missing, wrong or not trusted.\n";

static void* allocate(size_t bytes) {
  void* memory = NULL;
  if (posix_memalign(&memory, ALIGNMENT, bytes ? bytes : 1))
    fail(BAD_INPUT, "no memory for %zu bytes", bytes);
  return memory;
}

/* ---- the model ---- */

static char bundle[PATH_MAX / 2];

/* The bundle is the folder of this program, unless another is asked for. */
static void find_bundle(int count, char** arguments) {
  for (int i = 1; i + 1 < count; ++i)
    if (!strcmp(arguments[i], "--bundle")) {
      if (snprintf(bundle, sizeof bundle, "%s", arguments[i + 1]) >= (int)sizeof bundle)
        fail(BAD_INPUT, "the path of the bundle is too long");
      return;
    }
  ssize_t length = readlink("/proc/self/exe", bundle, sizeof bundle - 1);
  if (length < 0 || length == sizeof bundle - 1)
    fail(BAD_INPUT, "cannot find the folder of this program by /proc/self/exe");
  bundle[length] = 0;
  char* end = strrchr(bundle, '/');
  *(end == bundle ? end + 1 : end) = 0;
}

static void in_bundle(const char* name, char path[PATH_MAX]) {
  if (snprintf(path, PATH_MAX, "%s/%s", bundle, name) >= PATH_MAX)
    fail(BAD_INPUT, "the path of the bundle is too long");
}

typedef struct {
  const edgec_model* code;
  edgec_session* session;
  int32_t number; /* of the program, and memory for one run of it */
  const edgec_program* program;
  void** inputs;
  void** outputs;
} model;

/* The model's code, before there is memory to run it on. */
static const edgec_model* load_code(void) {
  char path[TRUST_PATH_BYTES];
  trust_message refused;
  int code_of_exit = trust_open_library(bundle, path, &refused);
  if (code_of_exit) fail(code_of_exit, "%s", refused.text);
  void* library = dlopen(path, RTLD_NOW);
  if (!library) fail(BAD_INPUT, "cannot load %s", dlerror());
  const edgec_model* (*loaded_model)(void) = NULL;
  *(void**)&loaded_model = dlsym(library, "edgec_loaded_model");
  if (!loaded_model) fail(BAD_INPUT, "the library is of another version of edgec than this program");
  const edgec_model* code = loaded_model();
  if (code->abi != EDGEC_ABI)
    fail(BAD_INPUT, "the interface of the library is version %d, this program is for %d", code->abi,
         EDGEC_ABI);
  return code;
}

/* Memory for tensors, each for so many steps. */
static void** allocate_all(int32_t count, const edgec_tensor* tensors, size_t steps) {
  void** all = allocate((size_t)count * sizeof(void*));
  for (int32_t i = 0; i < count; ++i) all[i] = allocate(steps * tensors[i].bytes);
  return all;
}

static void free_all(int32_t count, void** all) {
  for (int32_t i = 0; i < count; ++i) free(all[i]);
  free(all);
}

static void use_program(model* model, int32_t number) {
  if (model->program) {
    free_all(model->program->input_count, model->inputs);
    free_all(model->program->output_count, model->outputs);
  }
  model->number = number;
  model->program = &model->code->programs[number];
  model->inputs = allocate_all(model->program->input_count, model->program->inputs, 1);
  model->outputs = allocate_all(model->program->output_count, model->program->outputs, 1);
}

static model load(const edgec_model* code, int32_t threads, int32_t number) {
  model loaded = {code, code->open(threads), 0, NULL, NULL, NULL};
  if (!loaded.session) fail(BAD_INPUT, "no threads, or no memory for %zu bytes", code->arena_bytes);
  use_program(&loaded, number);
  return loaded;
}

static void run_once(model* model) {
  const void* const* inputs = (const void* const*)model->inputs;
  if (model->code->run_program(model->session, model->number, inputs, model->outputs, NULL))
    fail(BAD_INPUT, "%s", model->code->error(model->session));
}

static void read_tensor(const char* path, const edgec_tensor* tensor, void* data) {
  char message[1024];
  if (npy_read(path, tensor, data, message, sizeof message)) fail(BAD_INPUT, "%s", message);
}

/* ---- the test vectors of the bundle ---- */

/* What vectors.txt says. Its lines:
 *
 *     tolerance RELATIVE ABSOLUTE SQNR_DB   of the vectors that follow
 *     codes OUTPUT V0 V1 … V255     values of the bytes of an output whose dtype is a code
 *     vector PROGRAM GOES_ON FILE FILE …
 *                                   inputs, then outputs, each in the program's order; 1: the state
 *                                   is what the vector before left, 0: it is zeros */
typedef struct {
  int32_t program, goes_on;
  char (*files)[PATH_MAX];
  parity_tolerance tolerance;
} test_vector;

typedef struct {
  parity_tolerance tolerance;
  double** codes; /* by output, NULL where the bytes are numbers */
  test_vector* vectors;
  int32_t count;
} expectations;

static void read_codes(FILE* file, expectations* known, int32_t outputs) {
  int output;
  if (fscanf(file, "%d", &output) != 1 || output < 0 || output >= outputs)
    fail(BAD_INPUT, VECTORS " is damaged");
  known->codes[output] = allocate(256 * sizeof(double));
  for (int code = 0; code < 256; ++code)
    if (fscanf(file, "%lf", &known->codes[output][code]) != 1)
      fail(BAD_INPUT, VECTORS " is damaged");
}

static test_vector read_test_vector(FILE* file, const edgec_model* code) {
  test_vector vector = {0, 0, NULL, {0, 0, 0}};
  char name[1024];
  if (fscanf(file, "%d %d", &vector.program, &vector.goes_on) != 2 || vector.program < 0 ||
      vector.program >= code->program_count)
    fail(BAD_INPUT, VECTORS " is damaged");
  const edgec_program* program = &code->programs[vector.program];
  const int32_t tensors = program->input_count + program->output_count;
  vector.files = allocate((size_t)tensors * sizeof *vector.files);
  for (int32_t i = 0; i < tensors; ++i) {
    if (fscanf(file, "%1023s", name) != 1) fail(BAD_INPUT, VECTORS " is damaged");
    in_bundle(name, vector.files[i]);
  }
  return vector;
}

static expectations read_expectations(const model* model) {
  char path[PATH_MAX], word[16];
  expectations known = {{0, 0, 0}, NULL, NULL, 0};
  in_bundle(VECTORS, path);
  FILE* file = fopen(path, "r");
  if (!file) fail(BAD_INPUT, "cannot read %s", path);
  known.codes = calloc((size_t)model->code->output_count + 1, sizeof *known.codes);
  if (!known.codes) fail(BAD_INPUT, "no memory");
  while (fscanf(file, "%15s", word) == 1) {
    if (!strcmp(word, "tolerance")) {
      if (fscanf(file, "%lf %lf %lf", &known.tolerance.relative, &known.tolerance.absolute,
                 &known.tolerance.sqnr_db) != 3)
        fail(BAD_INPUT, VECTORS " is damaged");
    } else if (!strcmp(word, "codes")) {
      read_codes(file, &known, model->code->output_count);
    } else if (!strcmp(word, "vector")) {
      known.vectors = realloc(known.vectors, (size_t)(known.count + 1) * sizeof *known.vectors);
      if (!known.vectors) fail(BAD_INPUT, "no memory");
      known.vectors[known.count] = read_test_vector(file, model->code);
      known.vectors[known.count++].tolerance = known.tolerance;
    } else {
      fail(BAD_INPUT, VECTORS " is damaged");
    }
  }
  fclose(file);
  if (!known.count) fail(BAD_INPUT, VECTORS " names no vector");
  return known;
}

static void read_vector(model* model, const test_vector* vector) {
  for (int32_t i = 0; i < model->program->input_count; ++i)
    read_tensor(vector->files[i], &model->program->inputs[i], model->inputs[i]);
}

/* ---- JSON ---- */

static void print_text(const char* text) {
  putchar('"');
  for (; *text; ++text) {
    if (*text == '"' || *text == '\\') putchar('\\');
    putchar(*text);
  }
  putchar('"');
}

/* JSON has no infinity. */
static void print_number(double value) {
  if (isfinite(value))
    printf("%.6g", value);
  else
    printf("null");
}

/* Print the comparison of every vector's outputs; whether all are within their tolerance. Programs
 * that are not are noted in `failed`. */
static int verify(model* model, int* failed) {
  expectations known = read_expectations(model);
  int passed = 1;
  printf(",\n \"verify\": [");
  for (int32_t vector = 0; vector < known.count; ++vector) {
    const test_vector* test = &known.vectors[vector];
    if (!vector || test->program != test[-1].program) use_program(model, test->program);
    if (!test->goes_on) model->code->reset(model->session);
    read_vector(model, test);
    run_once(model);
    for (int32_t i = 0; i < model->program->output_count; ++i) {
      const edgec_tensor* tensor = &model->program->outputs[i];
      void* expected = allocate(tensor->bytes);
      read_tensor(test->files[model->program->input_count + i], tensor, expected);
      parity_result result =
          parity_compare(tensor, expected, model->outputs[i], known.codes[i], test->tolerance);
      free(expected);
      printf("%s\n  {\"vector\": %d, \"output\": ", vector || i ? "," : "", vector);
      print_text(tensor->name);
      printf(", \"max_error\": ");
      print_number(result.max_error);
      printf(", \"of_allowed\": ");
      print_number(result.allowed_share);
      printf(", \"passed\": %s", result.problem ? "false" : "true");
      if (result.problem) {
        printf(", \"problem\": ");
        print_text(result.problem);
        passed = 0;
        failed[model->number] = 1;
      }
      printf("}");
    }
  }
  printf("],\n \"passed\": %s", passed ? "true" : "false");
  return passed;
}

/* Print which early exit answered, if the model has any. */
static void print_exit(const model* model) {
  for (int32_t i = 0; i < model->program->output_count; ++i) {
    const edgec_tensor* tensor = &model->program->outputs[i];
    if (!strcmp(tensor->name, ANSWERED_BY) && !strcmp(tensor->dtype, "int32") && tensor->bytes == 4)
      printf(" \"" ANSWERED_BY "\": %d,\n", *(const int32_t*)model->outputs[i]);
  }
}

static int ascending(const void* left, const void* right) {
  double a = *(const double*)left, b = *(const double*)right;
  return (a > b) - (a < b);
}

/* Between the two values nearest to the share, as numpy.percentile does. */
static double percentile(const double* sorted, int32_t count, double share) {
  double place = share * (count - 1);
  int32_t below = (int32_t)place;
  double above = sorted[below + 1 < count ? below + 1 : below];
  return sorted[below] + (place - below) * (above - sorted[below]);
}

static void time_runs(model* model, int32_t repeat) {
  double* times = allocate((size_t)repeat * sizeof *times);
  double total = 0;
  for (int32_t i = 0; i < repeat; ++i) {
    double start = now_ms();
    run_once(model);
    times[i] = now_ms() - start;
    total += times[i];
  }
  qsort(times, (size_t)repeat, sizeof *times, ascending);
  printf(" \"min_ms\": %.6g, \"median_ms\": %.6g, \"mean_ms\": %.6g, \"p90_ms\": %.6g, "
         "\"p99_ms\": %.6g",
         times[0], percentile(times, repeat, 0.5), total / repeat, percentile(times, repeat, 0.9),
         percentile(times, repeat, 0.99));
  free(times);
}

/* ---- the command line ---- */

typedef struct {
  const char** input_files; /* by input, NULL where none is given */
  const char** output_files;
  const char *program, *state_to_load, *state_to_save;
  const char *sys, *proc; /* folders of signals */
  double deadline_ms, period_ms;
  int32_t inputs_given, repeat, threads;
  int steps, verify, install;
} request;

/* Put the file of NAME=FILE, or of FILE if there is one tensor only, where it belongs. */
static void assign(const char* option, const char* value, const char** files, int32_t count,
                   const edgec_tensor* tensors) {
  int32_t found = -1;
  const char* file = value;
  for (int32_t i = 0; i < count; ++i) {
    size_t length = strlen(tensors[i].name);
    if (!strncmp(value, tensors[i].name, length) && value[length] == '=') {
      found = i;
      file = value + length + 1;
    }
  }
  if (found < 0 && count == 1) found = 0;
  if (found < 0) {
    fprintf(stderr, "run: error: %s %s: write NAME=FILE.npy; the names are", option, value);
    for (int32_t i = 0; i < count; ++i) fprintf(stderr, " %s", tensors[i].name);
    fputs("\n", stderr);
    exit(USAGE);
  }
  if (files[found]) fail(USAGE, "%s is given twice for %s", option, tensors[found].name);
  files[found] = file;
}

static int32_t whole_number(const char* option, const char* value, long least, long most) {
  char* end;
  long number = strtol(value, &end, 10);
  if (end == value || *end || number < least || number > most)
    fail(USAGE, "%s is %s; give a whole number from %ld to %ld", option, value, least, most);
  return (int32_t)number;
}

static double milliseconds(const char* option, const char* value) {
  char* end;
  const double number = strtod(value, &end);
  if (end == value || *end || !(number > 0) || number > 1e9)
    fail(USAGE, "%s is %s; give milliseconds, more than 0 and up to 1e9", option, value);
  return number;
}

static request read_arguments(const edgec_model* code, int count, char** arguments) {
  int32_t inputs = code->input_count, outputs = code->output_count;
  request asked = {.repeat = 1, .sys = "/sys", .proc = "/proc"};
  asked.input_files = calloc((size_t)inputs + 1, sizeof(char*));
  asked.output_files = calloc((size_t)outputs + 1, sizeof(char*));
  if (!asked.input_files || !asked.output_files) fail(BAD_INPUT, "no memory");
  for (int i = 1; i < count; ++i) {
    const char* option = arguments[i];
    if (!strcmp(option, "--help") || !strcmp(option, "-h")) {
      fputs(usage, stdout);
      fputs(talk_usage, stdout);
      fputs(serve_usage, stdout);
      exit(0);
    }
    int* flag = !strcmp(option, "--verify")    ? &asked.verify
                : !strcmp(option, "--steps")   ? &asked.steps
                : !strcmp(option, "--install") ? &asked.install
                                               : NULL;
    if (flag) {
      *flag = 1;
      continue;
    }
    const char* value = i + 1 < count ? arguments[++i] : NULL;
    if (!value) fail(USAGE, "%s is unknown or needs a value; see ./run --help", option);
    if (!strcmp(option, "--input")) {
      assign(option, value, asked.input_files, inputs, code->inputs);
      ++asked.inputs_given;
    } else if (!strcmp(option, "--output")) {
      assign(option, value, asked.output_files, outputs, code->outputs);
    } else if (!strcmp(option, "--program")) {
      asked.program = value;
    } else if (!strcmp(option, "--load")) {
      asked.state_to_load = value;
    } else if (!strcmp(option, "--save")) {
      asked.state_to_save = value;
    } else if (!strcmp(option, "--bundle")) {
      /* find_bundle read it. */
    } else if (!strcmp(option, "--repeat")) {
      asked.repeat = whole_number(option, value, 1, 1000000);
    } else if (!strcmp(option, "--deadline")) {
      asked.deadline_ms = milliseconds(option, value);
    } else if (!strcmp(option, "--period")) {
      asked.period_ms = milliseconds(option, value);
    } else if (!strcmp(option, "--sys")) {
      asked.sys = value;
    } else if (!strcmp(option, "--proc")) {
      asked.proc = value;
    } else if (!strcmp(option, "--threads")) {
      asked.threads = whole_number(option, value, 0, 1024);
    } else {
      fail(USAGE, "unknown option %s; see ./run --help", option);
    }
  }
  if ((asked.state_to_load || asked.state_to_save) && !code->state_count)
    fail(USAGE, "--load and --save are for models with state; this one has none");
  for (int32_t i = 0; asked.inputs_given && i < inputs; ++i)
    if (!asked.input_files[i])
      fail(USAGE, "input %s is missing; add --input %s=FILE.npy", code->inputs[i].name,
           code->inputs[i].name);
  const int governs = asked.install || asked.deadline_ms > 0;
  const char* alone = asked.program         ? "--program"
                      : asked.steps         ? "--steps"
                      : asked.state_to_load ? "--load"
                      : asked.state_to_save ? "--save"
                                            : NULL;
  if (governs && alone) fail(USAGE, "%s is for one program; --install and --deadline run all", alone);
  if (asked.period_ms > 0 && !(asked.deadline_ms > 0)) fail(USAGE, "--period needs --deadline");
  if (asked.steps && !asked.inputs_given) fail(USAGE, "--steps needs --input");
  return asked;
}

/* The program that is asked for by its name, or takes the inputs; the first one if none does, so that
 * reading them says what is wrong. */
static int32_t choose_program(const edgec_model* code, const request* asked) {
  for (int32_t p = 0; p < code->program_count; ++p) {
    const edgec_program* program = &code->programs[p];
    int fits = 1;
    if (asked->program) {
      if (!strcmp(asked->program, program->name)) return p;
      continue;
    }
    for (int32_t i = 0; fits && asked->inputs_given && i < program->input_count; ++i)
      fits = npy_fits(asked->input_files[i], &program->inputs[i], asked->steps);
    if (fits) return p;
  }
  if (!asked->program && code->program_count == 1) return 0;
  fprintf(stderr, "run: error: no program %s; there are", asked->program ? asked->program
                                                                      : "takes these inputs");
  for (int32_t p = 0; p < code->program_count; ++p) fprintf(stderr, " %s", code->programs[p].name);
  fputs("\n", stderr);
  exit(asked->program ? USAGE : BAD_INPUT);
}

static void read_inputs(model* model, const request* asked) {
  if (!asked->inputs_given) {
    expectations known = read_expectations(model);
    const test_vector* vector = known.vectors;
    while (vector->program != model->number) ++vector;
    read_vector(model, vector);
    return;
  }
  for (int32_t i = 0; i < model->program->input_count; ++i)
    read_tensor(asked->input_files[i], &model->program->inputs[i], model->inputs[i]);
}

static void write_output(const char* path, const edgec_tensor* tensor, const void* data) {
  char message[1024];
  if (path && npy_write(path, tensor, data, message, sizeof message)) fail(BAD_INPUT, "%s", message);
}

static void write_outputs(const model* model, const request* asked) {
  for (int32_t i = 0; i < model->program->output_count; ++i)
    write_output(asked->output_files[i], &model->program->outputs[i], model->outputs[i]);
}

/* ---- state, and inputs of many steps ---- */

static void load_state(model* model, const char* path) {
  FILE* file = fopen(path, "rb");
  if (!file) fail(BAD_INPUT, "cannot read the state %s", path);
  unsigned char* saved = allocate(model->code->saved_bytes + 1);
  size_t bytes = fread(saved, 1, model->code->saved_bytes + 1, file);
  fclose(file);
  if (model->code->restore(model->session, saved, bytes))
    fail(BAD_INPUT, "%s: %s", path, model->code->error(model->session));
  free(saved);
}

static void save_state(const model* model, const char* path) {
  unsigned char* saved = allocate(model->code->saved_bytes);
  model->code->save(model->session, saved);
  FILE* file = fopen(path, "wb");
  size_t written = file ? fwrite(saved, 1, model->code->saved_bytes, file) : 0;
  if (!file || fclose(file) || written != model->code->saved_bytes)
    fail(BAD_INPUT, "cannot write the state %s", path);
  free(saved);
}

/* A tensor with an axis of `steps` in front. */
static edgec_tensor stacked(const edgec_tensor* tensor, int64_t steps) {
  edgec_tensor many = *tensor;
  int64_t* shape = allocate((size_t)(tensor->rank + 1) * sizeof *shape);
  shape[0] = steps;
  memcpy(shape + 1, tensor->shape, (size_t)tensor->rank * sizeof *shape);
  many.rank = tensor->rank + 1;
  many.shape = shape;
  many.bytes = tensor->bytes * (size_t)steps;
  return many;
}

/* Run once for each entry of the inputs' first axis; how many there are. */
static int64_t run_steps(model* model, const request* asked) {
  const edgec_program* program = model->program;
  if (!program->input_count) fail(USAGE, "--steps is for models with inputs");
  const int64_t steps = npy_fits(asked->input_files[0], &program->inputs[0], 1);
  void** inputs = allocate_all(program->input_count, program->inputs, (size_t)steps);
  void** outputs = allocate_all(program->output_count, program->outputs, (size_t)steps);
  for (int32_t i = 0; i < program->input_count; ++i) {
    edgec_tensor many = stacked(&program->inputs[i], steps);
    read_tensor(asked->input_files[i], &many, inputs[i]);
  }
  for (int64_t step = 0; step < steps; ++step) {
    for (int32_t i = 0; i < program->input_count; ++i)
      memcpy(model->inputs[i], (char*)inputs[i] + (size_t)step * program->inputs[i].bytes,
             program->inputs[i].bytes);
    run_once(model);
    for (int32_t i = 0; i < program->output_count; ++i)
      memcpy((char*)outputs[i] + (size_t)step * program->outputs[i].bytes, model->outputs[i],
             program->outputs[i].bytes);
  }
  for (int32_t i = 0; i < program->output_count; ++i) {
    edgec_tensor many = stacked(&program->outputs[i], steps);
    write_output(asked->output_files[i], &many, outputs[i]);
  }
  free_all(program->input_count, inputs);
  free_all(program->output_count, outputs);
  return steps;
}

/* ---- variants ---- */

/* Install the variants, or run the one that meets the deadline each time; the outputs of the last run
 * are the model's then. Files of inputs are for the variants that they fit. */
static void run_governed(model* model, const request* asked, const int* failed) {
  const edgec_model* code = model->code;
  const size_t programs = (size_t)code->program_count;
  const void* const** inputs = allocate(programs * sizeof *inputs);
  void* const** outputs = allocate(programs * sizeof *outputs);
  for (int32_t p = 0; p < code->program_count; ++p) {
    model->program = NULL; /* keep the memory of the one before */
    use_program(model, p);
    read_inputs(model, asked);
    inputs[p] = (const void* const*)model->inputs;
    outputs[p] = model->outputs;
  }
  const governed variants = {code,   model->session,     bundle,           inputs,    outputs,
                             failed, asked->deadline_ms, asked->period_ms, asked->sys, asked->proc};
  char message[GOVERN_MESSAGE];
  if (failed && govern_install(&variants, message)) fail(BAD_INPUT, "%s", message);
  if (failed) return;
  const int32_t last = govern_run(&variants, asked->repeat, message);
  if (last < 0) fail(BAD_INPUT, "%s", message);
  model->number = last;
  model->program = &code->programs[last];
  model->outputs = (void**)outputs[last];
  write_outputs(model, asked);
}

/* Answer --install or --deadline; the exit code. */
static int governed_main(const edgec_model* code, const request* asked) {
  model opened = load(code, asked->threads, 0);
  int* failed = calloc((size_t)code->program_count, sizeof *failed);
  if (!failed) fail(BAD_INPUT, "no memory");
  printf("{\"threads\": %d, \"repeat\": %d", code->threads(opened.session), asked->repeat);
  if (asked->install) {
    verify(&opened, failed);
    run_governed(&opened, asked, failed);
  }
  if (asked->deadline_ms > 0) run_governed(&opened, asked, NULL);
  printf("}\n");
  code->close(opened.session);
  if (fflush(stdout) || ferror(stdout)) fail(BAD_INPUT, "cannot write to the standard output");
  return 0;
}

int main(int count, char** arguments) {
  double start = now_ms();
  find_bundle(count, arguments);
  const edgec_model* code = load_code();
  if (asks_to_serve(count, arguments)) return serve(code, bundle, count, arguments);
  if (asks_for_text(count, arguments)) {
    char path[PATH_MAX];
    in_bundle(TOKENIZER, path);
    return talk(code, path, start, count, arguments);
  }
  static char document[1 << 16]; /* it is printed when it is complete */
  setvbuf(stdout, document, _IOFBF, sizeof document);
  request asked = read_arguments(code, count, arguments);
  if (asked.install || asked.deadline_ms > 0) return governed_main(code, &asked);
  model opened = load(code, asked.threads, choose_program(code, &asked));
  double loaded = now_ms();
  if (asked.state_to_load) load_state(&opened, asked.state_to_load);
  int64_t steps = 1;
  if (asked.steps) {
    steps = run_steps(&opened, &asked);
  } else {
    read_inputs(&opened, &asked);
    run_once(&opened);
  }
  double first = now_ms();
  if (!asked.steps) write_outputs(&opened, &asked);
  if (asked.state_to_save) save_state(&opened, asked.state_to_save);

  printf("{\"threads\": %d, \"repeat\": %d,\n", code->threads(opened.session), asked.repeat);
  if (code->program_count > 1) {
    printf(" \"program\": ");
    print_text(opened.program->name);
    printf(",\n");
  }
  if (!asked.steps) print_exit(&opened);
  if (asked.steps)
    printf(" \"steps\": %lld, \"steps_ms\": %.6g,\n", (long long)steps, first - loaded);
  printf(" \"load_ms\": %.6g, \"first_result_ms\": %.6g,\n", loaded - start, first - start);
  time_runs(&opened, asked.repeat);
  int* failed = calloc((size_t)code->program_count, sizeof *failed);
  if (!failed) fail(BAD_INPUT, "no memory");
  int passed = !asked.verify || verify(&opened, failed);
  printf("}\n");
  code->close(opened.session);
  if (fflush(stdout) || ferror(stdout)) fail(BAD_INPUT, "cannot write to the standard output");
  return passed ? 0 : CHECK_FAILED;
}
