/* Runs a model once, on one thread, for QEMU's plugin to count its instructions (plugin.c).
 *
 *     count MODEL.SO INPUTS PROGRAM [OUTPUTS]
 *
 * INPUTS holds the bytes of every input, one after the other; OUTPUTS receives those of every output.
 * Reading the clock is what the plugin
 * takes for a mark. In order: three marks that have nothing between them, the one that the executor
 * sets before its first step, one after each step, and one after the run. Before, there is a run
 * without marks: the first one maps memory and resolves functions. Prints the label, the template
 * and the operations of each step, each ended by a zero byte. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "edgec.h"

enum { ALIGNMENT = 64 };

_Noreturn static void fail(const char* message) {
  fprintf(stderr, "%s\n", message);
  exit(1);
}

static void* allocate(size_t bytes) {
  void* memory = NULL;
  if (posix_memalign(&memory, ALIGNMENT, bytes ? bytes : 1)) fail("no memory");
  return memory;
}

static void mark(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
}

static void* library;

static void* find(const char* name) {
  void* found = dlsym(library, name);
  if (!found) fail(dlerror());
  return found;
}

int main(int count, char** arguments) {
  if (count != 4 && count != 5) fail("usage: count MODEL.SO INPUTS PROGRAM [OUTPUTS]");
  library = dlopen(arguments[1], RTLD_NOW);
  if (!library) fail(dlerror());
  __typeof__(edgec_loaded_model)* const loaded_model = find("edgec_loaded_model");
  const edgec_model* const model = loaded_model();
  if (model->abi != EDGEC_ABI) fail("the model is of another version of edgec");

  FILE* file = fopen(arguments[2], "rb");
  const int32_t number = atoi(arguments[3]);
  const edgec_program* const program = &model->programs[number];
  int32_t inputs = program->input_count, outputs = program->output_count;
  int32_t steps = program->step_count;
  void** buffers = allocate((size_t)(inputs + outputs) * sizeof(void*));
  uint64_t* nanoseconds = allocate((size_t)steps * sizeof(uint64_t));
  for (int32_t i = 0; i < inputs + outputs; ++i) {
    const edgec_tensor* tensor = i < inputs ? &program->inputs[i] : &program->outputs[i - inputs];
    buffers[i] = allocate(tensor->bytes);
    if (i < inputs && (!file || fread(buffers[i], 1, tensor->bytes, file) != tensor->bytes))
      fail("cannot read the inputs");
  }
  edgec_session* session = model->open(1);
  const void* const* given = (const void* const*)buffers;
  if (!session) fail("no memory");
  if (model->run_program(session, number, given, buffers + inputs, NULL))
    fail(model->error(session));
  mark(); /* resolves the function */
  mark();
  mark();
  if (model->run_program(session, number, given, buffers + inputs, nanoseconds))
    fail(model->error(session));
  mark();
  FILE* results = count == 5 ? fopen(arguments[4], "wb") : NULL;
  for (int32_t i = 0; results && i < outputs; ++i)
    fwrite(buffers[inputs + i], 1, program->outputs[i].bytes, results);
  if (count == 5 && (!results || fclose(results))) fail("cannot write the outputs");
  for (int32_t i = 0; i < steps; ++i) {
    edgec_step_info step = model->program_step(number, i);
    printf("%s%c%s%c%lld%c", step.label, 0, step.template_, 0, (long long)step.flops, 0);
  }
  return 0;
}
