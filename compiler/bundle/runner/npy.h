/* NumPy's .npy files, as far as tensors of a model need them: dense, row-major, little-endian. */
#ifndef NPY_H
#define NPY_H

#include <stddef.h>
#include <stdint.h>

#include "edgec.h"

/* Elements of a tensor. */
size_t npy_count(const edgec_tensor* tensor);

/* Read a file that holds exactly this tensor into `data`. 0 on success, else `message` (of `size`
 * bytes) says what was found and what was expected. */
int npy_read(const char* path, const edgec_tensor* tensor, void* data, char* message, size_t size);

/* Whether a file holds a tensor of this shape and dtype; with `steps` whether it holds some of them
 * with one more axis in front, and how many: 0 if not. */
int64_t npy_fits(const char* path, const edgec_tensor* tensor, int steps);

/* Write a tensor; an older file of this name is replaced when the new one is complete. */
int npy_write(const char* path, const edgec_tensor* tensor, const void* data, char* message,
              size_t size);

#endif
