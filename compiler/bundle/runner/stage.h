/* Serve the model of a bundle as one stage of a split model. */
#ifndef EDGEC_STAGE_H
#define EDGEC_STAGE_H

#include <stdint.h>

#include "edgec.h"

typedef struct stage stage;

/* A stage with memory for `slots` requests at once: all that it ever allocates. NULL if there is no
 * memory, or the model does not fit; `why` says so. `digest` is that of the bundle's manifest. */
stage* stage_new(const edgec_model* code, int32_t threads, int32_t slots, const uint8_t* key,
                 const uint8_t digest[32], const char** why);

/* Serve one connection until it ends, on the calling thread; the socket is closed. */
void stage_connection(stage* stage, int socket);

/* Whether arguments ask to serve: --serve is among them. */
int asks_to_serve(int count, char** arguments);

/* Do so until the end of the process; an exit code if that cannot begin. */
int serve(const edgec_model* code, const char* bundle, int count, char** arguments);

extern const char serve_usage[];

#endif
