/* The model's functions once more, in the form that TVM's runtime looks for in a library that it
 * loads: by this a board's RPC server can run the model. Needs no part of TVM; the two structures
 * are those of its C interface (tvm/ffi/c_api.h, dlpack/dlpack.h). */
#include <inttypes.h>
#include <stdio.h>

typedef struct {
  int32_t type;
  uint32_t padding;
  union {
    int64_t integer;
    void* pointer;
  };
} any;

enum { ANY_NONE = 0, ANY_INTEGER = 1, ANY_TENSOR_POINTER = 7, ANY_TENSOR_OBJECT = 70 };
enum { OBJECT_HEADER_BYTES = 24 };

typedef struct {
  void* data;
  int32_t device_type, device_id;
  int32_t rank;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
} tensor;

/* What a function answers when it was not called as its model needs it. */
enum { BAD_CALL = -4 };
enum { STEP_TEXT_BYTES = 512 };

/* The data of a one-dimensional tensor of exactly so many bytes, or NULL. */
static void* bytes_of(const any* argument, size_t bytes) {
  const unsigned char* pointer = argument->pointer;
  if (argument->type == ANY_TENSOR_OBJECT) pointer += OBJECT_HEADER_BYTES;
  else if (argument->type != ANY_TENSOR_POINTER) return NULL;
  const tensor* view = (const tensor*)pointer;
  if (view->rank != 1 || view->type_bits != 8 || (uint64_t)view->shape[0] != bytes) return NULL;
  return (unsigned char*)view->data + view->byte_offset;
}

static int answer(any* result, int64_t value) {
  *result = (any){.type = ANY_INTEGER, .integer = value};
  return 0;
}

/* (threads) -> session, 0 if memory or threads are not to be had */
int __tvm_ffi_edgec_open(void* self, const any* arguments, int32_t count, any* result) {
  (void)self;
  if (count != 1 || arguments[0].type != ANY_INTEGER) return answer(result, 0);
  return answer(result, (intptr_t)model.open((int32_t)arguments[0].integer));
}

/* (session) */
int __tvm_ffi_edgec_close(void* self, const any* arguments, int32_t count, any* result) {
  (void)self;
  if (count == 1 && arguments[0].type == ANY_INTEGER)
    model.close((edgec_session*)(intptr_t)arguments[0].integer);
  *result = (any){.type = ANY_NONE};
  return 0;
}

/* The integer of an argument if it is the number of a program, else -1. */
static int32_t program_of(const any* argument) {
  const int good = argument->type == ANY_INTEGER && argument->integer >= 0 &&
                   argument->integer < model.program_count;
  return good ? (int32_t)argument->integer : -1;
}

/* The session of the first argument, or NULL. */
static edgec_session* session_of(const any* arguments, int32_t count) {
  if (count < 1 || arguments[0].type != ANY_INTEGER) return NULL;
  return (edgec_session*)(intptr_t)arguments[0].integer;
}

static int call(const any* arguments, int32_t count, uint64_t* nanoseconds, any* result) {
  edgec_session* session = session_of(arguments, count);
  const int32_t number = count < 2 ? -1 : program_of(&arguments[1]);
  if (!session || number < 0) return answer(result, BAD_CALL);
  const edgec_program* program = &model.programs[number];
  const int32_t inputs = program->input_count, outputs = program->output_count;
  if (count != 2 + inputs + outputs) return answer(result, BAD_CALL);
  void* buffers[count];
  for (int32_t i = 0; i < inputs + outputs; ++i) {
    const edgec_tensor* spec = i < inputs ? &program->inputs[i] : &program->outputs[i - inputs];
    buffers[i] = bytes_of(&arguments[2 + i], spec->bytes);
    if (!buffers[i] && spec->bytes) return answer(result, BAD_CALL);
  }
  const void* const* given = (const void* const*)buffers;
  return answer(result, model.run_program(session, number, given, buffers + inputs, nanoseconds));
}

/* (session, program, inputs..., outputs...), tensors as their bytes -> what run of edgec.h gives, or
 * BAD_CALL */
int __tvm_ffi_edgec_run(void* self, const any* arguments, int32_t count, any* result) {
  (void)self;
  return call(arguments, count, NULL, result);
}

/* The same with one more tensor, which takes the nanoseconds of each step as uint64. */
int __tvm_ffi_edgec_run_timed(void* self, const any* arguments, int32_t count, any* result) {
  (void)self;
  const int32_t number = count < 3 ? -1 : program_of(&arguments[1]);
  if (number < 0) return answer(result, BAD_CALL);
  const size_t bytes = sizeof(uint64_t) * (size_t)model.programs[number].step_count;
  void* nanoseconds = bytes_of(&arguments[count - 1], bytes);
  if (!nanoseconds) return answer(result, BAD_CALL);
  return call(arguments, count - 1, nanoseconds, result);
}

/* (session) -> 0: all state is zeros */
int __tvm_ffi_edgec_reset(void* self, const any* arguments, int32_t count, any* result) {
  (void)self;
  edgec_session* session = session_of(arguments, count);
  if (!session) return answer(result, BAD_CALL);
  model.reset(session);
  return answer(result, 0);
}

/* (session, bytes): write all state into a tensor of saved_bytes -> 0 */
int __tvm_ffi_edgec_save(void* self, const any* arguments, int32_t count, any* result) {
  (void)self;
  edgec_session* session = session_of(arguments, count);
  void* saved = count == 2 ? bytes_of(&arguments[1], model.saved_bytes) : NULL;
  if (!session || !saved) return answer(result, BAD_CALL);
  model.save(session, saved);
  return answer(result, 0);
}

/* (session, bytes): read it again -> what restore of edgec.h gives */
int __tvm_ffi_edgec_restore(void* self, const any* arguments, int32_t count, any* result) {
  (void)self;
  edgec_session* session = session_of(arguments, count);
  const void* saved = count == 2 ? bytes_of(&arguments[1], model.saved_bytes) : NULL;
  if (!session || !saved) return answer(result, BAD_CALL);
  return answer(result, model.restore(session, saved, model.saved_bytes));
}

/* (program, step, text): write its label, template and operations into a tensor of STEP_TEXT_BYTES,
 * each ended by a zero byte -> 0 */
int __tvm_ffi_edgec_step(void* self, const any* arguments, int32_t count, any* result) {
  (void)self;
  char* text = count == 3 ? bytes_of(&arguments[2], STEP_TEXT_BYTES) : NULL;
  const int32_t number = text ? program_of(&arguments[0]) : -1;
  if (number < 0 || arguments[1].type != ANY_INTEGER) return answer(result, BAD_CALL);
  int64_t index = arguments[1].integer;
  if (index < 0 || index >= model.programs[number].step_count) return answer(result, BAD_CALL);
  edgec_step_info step = model.program_step(number, (int32_t)index);
  const int most = STEP_TEXT_BYTES / 2 - 16;
  snprintf(text, STEP_TEXT_BYTES, "%.*s%c%.*s%c%" PRId64, most, step.label, 0, most,
           step.template_, 0, step.flops);
  return answer(result, 0);
}

/* (program) -> how many steps it has */
int __tvm_ffi_edgec_step_count(void* self, const any* arguments, int32_t count, any* result) {
  (void)self;
  const int32_t number = count == 1 ? program_of(&arguments[0]) : -1;
  return answer(result, number < 0 ? BAD_CALL : model.programs[number].step_count);
}
