#include "npy.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC "\x93NUMPY"
#define LONGEST_HEADER 65536
#define LONGEST_AXIS 2147483647

static const struct {
  const char* dtype;
  const char* code;
} numpy_codes[] = {{"float32", "f4"}, {"float64", "f8"}, {"float16", "f2"}, {"int8", "i1"},
                   {"int16", "i2"},   {"int32", "i4"},   {"int64", "i8"},   {"uint8", "u1"},
                   {"uint16", "u2"},  {"uint32", "u4"},  {"uint64", "u8"},  {"bool", "b1"}};

/* How a file spells a dtype. What NumPy does not have is stored as unsigned integers. */
static const char* code_of(const char* dtype) {
  for (size_t i = 0; i < sizeof numpy_codes / sizeof *numpy_codes; ++i)
    if (!strcmp(numpy_codes[i].dtype, dtype)) return numpy_codes[i].code;
  return strcmp(dtype, "bfloat16") ? "u1" : "u2";
}

size_t npy_count(const edgec_tensor* tensor) {
  size_t count = 1;
  for (int32_t axis = 0; axis < tensor->rank; ++axis) count *= (size_t)tensor->shape[axis];
  return count;
}

/* As Python writes a tuple: (), (3,), (1, 3). */
static void write_shape(const edgec_tensor* tensor, char* text, size_t size) {
  size_t used = (size_t)snprintf(text, size, "(");
  for (int32_t axis = 0; axis < tensor->rank && used < size; ++axis)
    used += (size_t)snprintf(text + used, size - used, "%s%lld", axis ? ", " : "",
                             (long long)tensor->shape[axis]);
  if (used < size) snprintf(text + used, size - used, tensor->rank == 1 ? ",)" : ")");
}

/* The text after "'key': " in the header, or an empty one. */
static const char* value_of(const char* header, const char* key) {
  const char* found = strstr(header, key);
  if (!found) return "";
  found += strlen(key);
  return found + strspn(found, "': ");
}

/* Whether a shape is that of a tensor, behind an axis of `steps` if that is not NULL. */
static int same_shape(const char* text, const edgec_tensor* tensor, int64_t* steps) {
  char* end;
  if (*text++ != '(') return 0;
  if (steps) {
    *steps = strtoll(text, &end, 10);
    if (*steps < 1 || *steps > LONGEST_AXIS || end == text) return 0;
    text = end;
  }
  for (int32_t axis = 0; axis < tensor->rank; ++axis) {
    text += strspn(text, ", ");
    if (strtoll(text, &end, 10) != tensor->shape[axis] || end == text) return 0;
    text = end;
  }
  return text[strspn(text, ", ")] == ')';
}

static int same_code(const char* text, const char* code) {
  int little = *text == '<' || *text == '|' || *text == '=';
  return little && !strncmp(text + 1, code, 2) && text[3] == '\'';
}

/* A float16 as the bits of the float32 of the same value. */
static uint32_t widened(uint16_t half) {
  uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, rest = half & 1023;
  if (exponent == 31) return sign | 0x7f800000 | rest << 13;
  if (exponent) return sign | (exponent + 112) << 23 | rest << 13;
  if (!rest) return sign;
  for (exponent = 113; !(rest & 1024); rest <<= 1) --exponent;
  return sign | exponent << 23 | (rest & 1023) << 13;
}

/* Read the data; halves of floats become floats. */
static int read_data(FILE* file, const edgec_tensor* tensor, int halves, void* data) {
  size_t bytes = halves ? tensor->bytes / 2 : tensor->bytes;
  unsigned char* from = (unsigned char*)data + tensor->bytes - bytes;
  if (fread(from, 1, bytes, file) != bytes || fgetc(file) != EOF) return -1;
  /* They lie in the second half, so none is overwritten before it is read. */
  for (size_t i = 0; halves && i < npy_count(tensor); ++i) {
    uint32_t wide = widened((uint16_t)(from[2 * i] | from[2 * i + 1] << 8));
    memcpy((unsigned char*)data + 4 * i, &wide, sizeof wide);
  }
  return 0;
}

/* Read the header as a text. */
static int read_header(FILE* file, char* header) {
  unsigned char start[8], length[4] = {0};
  if (fread(start, 1, 8, file) != 8 || memcmp(start, MAGIC, 6)) return -1;
  size_t width = start[6] == 1 ? 2 : 4;
  if (fread(length, 1, width, file) != width) return -1;
  size_t size = length[0] | (size_t)length[1] << 8 | (size_t)length[2] << 16;
  if (length[3] || size >= LONGEST_HEADER || fread(header, 1, size, file) != size) return -1;
  header[size] = 0;
  return 0;
}

int64_t npy_fits(const char* path, const edgec_tensor* tensor, int steps) {
  static char header[LONGEST_HEADER];
  int64_t count = 1;
  FILE* file = fopen(path, "rb");
  if (!file) return 0;
  int damaged = read_header(file, header);
  fclose(file);
  if (damaged) return 0;
  const char* dtype = value_of(header, "'descr'");
  int halves = same_code(dtype, "f2") && !strcmp(tensor->dtype, "float32");
  if (!halves && !same_code(dtype, code_of(tensor->dtype))) return 0;
  return same_shape(value_of(header, "'shape'"), tensor, steps ? &count : NULL) ? count : 0;
}

static int read_tensor(FILE* file, const char* path, const edgec_tensor* tensor, void* data,
                       char* message, size_t size) {
  static char header[LONGEST_HEADER];
  if (read_header(file, header)) {
    snprintf(message, size, "%s is no .npy file", path);
    return -1;
  }
  const char* dtype = value_of(header, "'descr'");
  const char* shape = value_of(header, "'shape'");
  const int halves = same_code(dtype, "f2") && !strcmp(tensor->dtype, "float32");
  if (!(halves || same_code(dtype, code_of(tensor->dtype))) || !same_shape(shape, tensor, NULL)) {
    char wanted[256];
    write_shape(tensor, wanted, sizeof wanted);
    snprintf(message, size, "%s holds %.*s of shape %.*s; %s is %s (%s) of shape %s", path,
             (int)strcspn(dtype, "'"), dtype, (int)strcspn(shape, ")") + 1, shape, tensor->name,
             code_of(tensor->dtype), tensor->dtype, wanted);
    return -1;
  }
  if (strncmp(value_of(header, "'fortran_order'"), "False", 5)) {
    snprintf(message, size, "%s is in Fortran order; save numpy.ascontiguousarray of it", path);
    return -1;
  }
  if (read_data(file, tensor, halves, data)) {
    snprintf(message, size, "%s does not hold the %zu bytes that its header promises", path,
             halves ? tensor->bytes / 2 : tensor->bytes);
    return -1;
  }
  return 0;
}

int npy_read(const char* path, const edgec_tensor* tensor, void* data, char* message, size_t size) {
  FILE* file = fopen(path, "rb");
  if (!file) {
    snprintf(message, size, "cannot read %s: %s", path, strerror(errno));
    return -1;
  }
  int status = read_tensor(file, path, tensor, data, message, size);
  fclose(file);
  return status;
}

static int write_tensor(FILE* file, const edgec_tensor* tensor, const void* data) {
  char header[512], shape[256];
  const char* code = code_of(tensor->dtype);
  write_shape(tensor, shape, sizeof shape);
  int used = snprintf(header, sizeof header,
                      "{'descr': '%c%s', 'fortran_order': False, 'shape': %s, }",
                      code[1] == '1' ? '|' : '<', code, shape);
  /* The data begins at a multiple of 64 bytes; the header ends with a new line. */
  unsigned length = (unsigned)(10 + used + 64) / 64 * 64 - 10;
  unsigned char start[] = {1, 0, (unsigned char)length, (unsigned char)(length >> 8)};
  fwrite(MAGIC, 1, 6, file);
  fwrite(start, 1, sizeof start, file);
  fprintf(file, "%s%*s\n", header, (int)length - used - 1, "");
  fwrite(data, 1, tensor->bytes, file);
  return ferror(file) ? -1 : 0;
}

int npy_write(const char* path, const edgec_tensor* tensor, const void* data, char* message,
              size_t size) {
  char partial[4096];
  if (snprintf(partial, sizeof partial, "%s.part", path) >= (int)sizeof partial) {
    snprintf(message, size, "cannot write: the path is too long");
    return -1;
  }
  FILE* file = fopen(partial, "wb");
  int status = file ? write_tensor(file, tensor, data) : -1;
  if (file && fclose(file)) status = -1;
  if (!status) status = rename(partial, path);
  if (status) {
    snprintf(message, size, "cannot write %s: %s", path, strerror(errno));
    if (file) remove(partial);
  }
  return status;
}
