/* Small files, paths and messages. */
#ifndef EDGEC_FILES_H
#define EDGEC_FILES_H

#include <stddef.h>
#include <stdint.h>

/* Codes that the program ends with. */
enum { TRUST_OK = 0, TRUST_BAD_INPUT = 4, TRUST_REFUSED = 8 };

enum { TRUST_MESSAGE_BYTES = 2048, TRUST_PATH_BYTES = 4096 };

/* Why something is refused, in one line. */
typedef struct {
  char text[TRUST_MESSAGE_BYTES];
} trust_message;

/* Write a message; gives the code. */
int trust_fail(trust_message* message, int code, const char* format, ...)
    __attribute__((format(printf, 3, 4)));

/* FOLDER/NAME; 0 if it fits. */
int trust_join(const char* folder, const char* name, char path[TRUST_PATH_BYTES]);

/* Open a regular file, and no symbolic link, for reading, and tell its size: -1 if there is none. */
int trust_open_file(const char* path, uint64_t* bytes);

/* Read exactly so many bytes; 0 if there were so many. */
int trust_read(int file, void* data, size_t bytes);

/* The whole of a file, with a zero byte behind it, to be freed; NULL if it cannot be read or is
 * longer than `most`. Symbolic links are followed. */
char* trust_read_file(const char* path, size_t most, size_t* bytes);

/* Hexadecimal digits of lower case; 0 if there are so many. */
int trust_from_hex(const char* text, uint8_t* data, size_t bytes);
void trust_to_hex(const uint8_t* data, size_t bytes, char* text);

#endif
